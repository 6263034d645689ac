"use strict";
(() => {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const places = [...document.querySelectorAll(".plot")];
  const options = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

  const colors = (paper) => {
    const text = dark.matches && !paper ? "#e6edf3" : "#1b1f24";
    const line = dark.matches && !paper ? "#3a434e" : "#d0d7de";
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    return { text, axis };
  };
  const layout = (plot, paper) => {
    const { text, axis } = colors(paper);
    const of = (own) => ({ ...axis, ...own });
    return {
      ...plot.layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, family: "system-ui, sans-serif", size: 12 }, dragmode: false,
      xaxis: of(plot.layout.xaxis), yaxis: of(plot.layout.yaxis),
    };
  };
  const draw = (paper) => places.forEach((place) => {
    // A copy, and drawn anew: the library writes to what it is given, and keeps margins of the plot before.
    const plot = structuredClone(plots[Number(place.dataset.plot)]);
    Plotly.newPlot(place, plot.data, layout(plot, paper), options);
  });

  if (places.length) {
    places.forEach((place) => { place.style.height = `${place.dataset.height}px`; });
    draw(false);
    dark.addEventListener("change", () => draw(false));
  }
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
    if (places.length) draw(true);
  });
  addEventListener("afterprint", () => {
    closed.forEach((each) => { each.open = false; });
    if (places.length) draw(false);
  });
  document.documentElement.dataset.ready = "true";
})();
