// Classifies an image with a krl bundle on OpenVINO: classify NAME.krl IMAGE.ppm [--variant NAME] [--logits]
#include <cstdio>

#include <openvino/openvino.hpp>

#include "preprocess.hpp"

namespace {

using krl::Json;

// Returns the scores of the classes, 0 to 1, that the network's outputs stand for.
std::vector<double> scores_of(const std::string& kind, const float* outputs, std::size_t count) {
    std::vector<double> scores(outputs, outputs + count);
    if (kind == "probabilities") return scores;
    krl::require(kind == "logits", "output_kind " + kind + " is not known here; accepted: logits, probabilities");
    const double largest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - largest);
    for (double& score : scores) score /= sum;
    return scores;
}

ov::CompiledModel compile(const krl::Bundle& bundle, const std::string& variant, const ov::Shape& shape) {
    const Json& files = bundle.manifest.at("variants", Json::object).at(variant, Json::object);
    const Json* other = files.find("fp32_file");  // the variant's graph with FP32 in place of FP16
    const bool has_other = other && other->kind == Json::string;
    ov::Core core;
    const auto model = core.read_model(bundle.read(has_other ? other->text : files.str("file")), ov::Tensor());
    model->reshape(ov::PartialShape(shape));
    return core.compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32));
}

void classify(const std::string& path, const std::string& image, const std::string& variant, bool logits) {
    const krl::Bundle bundle(path);
    const Json &manifest = bundle.manifest, &spec = manifest.at("preprocessing", Json::object);
    const Json &labels = manifest.at("labels", Json::array), &settings = manifest.at("settings", Json::object);
    krl::require(manifest.str("task") == "classification", "the bundle is for the task " + manifest.str("task"));
    krl::require(manifest.at("inputs", Json::array).items.size() == 1, "the network has further inputs");
    auto planes = krl::preprocess(krl::read_pnm(krl::read_file(image, std::size_t(1) << 30)), spec);
    const auto side = [&](const char* name) { return std::size_t(spec.num(name)); };
    const ov::Shape shape{1, side("channels"), side("height"), side("width")};

    auto request = compile(bundle, variant, shape).create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::u8, shape, planes.data()));
    request.infer();
    const auto output = request.get_output_tensor(0);
    krl::require(output.get_size() == labels.items.size(), "the network has other classes than the manifest");

    const Json *kind = settings.find("output_kind"), *least = settings.find("least_score");
    const auto scores = scores_of(kind ? kind->text : "logits", output.data<float>(), output.get_size());
    const auto best = std::size_t(std::max_element(scores.begin(), scores.end()) - scores.begin());
    krl::require(std::isfinite(scores[best]), "the network gave numbers that are not finite");
    const bool known = !least || least->kind != Json::number || scores[best] >= least->value;
    std::printf("%s%s %.1f%%\n", known ? "" : "none of these: ", labels.items[best].text.c_str(), 100 * scores[best]);
    for (std::size_t i = 0; logits && i < scores.size(); ++i) std::printf("%.9g\n", double(output.data<float>()[i]));
}

}  // namespace

int main(int count, char** arguments) {
    std::vector<std::string> given(arguments + 1, arguments + count);
    std::string variant = "fp32";
    bool logits = false;
    for (std::size_t i = 2; i < given.size(); ++i) {
        if (given[i] == "--logits") logits = true;
        else if (given[i] == "--variant" && i + 1 < given.size()) variant = given[++i];
        else given.clear();
    }
    if (given.size() < 2) {
        std::fprintf(stderr, "usage: classify NAME.krl IMAGE.ppm [--variant NAME] [--logits]\n");
        return 2;
    }
    try {
        classify(given[0], given[1], variant, logits);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
    return 0;
}
