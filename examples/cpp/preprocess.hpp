// From an image to a network's input, with the pixels of krl_runtime to the last bit.
// Reads binary PGM and PPM of 8 bits; resizes as Pillow does, with antialiasing.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>

#include "bundle.hpp"

namespace krl {

// Pixels [height][width][channels] of 8 bits.
struct Image {
    int width = 0, height = 0, channels = 0;
    std::vector<std::uint8_t> pixels;
};

inline Image read_pnm(const std::string& data) {
    const bool good = data.size() > 2 && data[0] == 'P' && (data[1] == '5' || data[1] == '6');
    require(good, "the image is no binary PGM or PPM (P5, P6); convert it first");
    long header[3] = {0, 0, 0};  // width, height, largest value
    std::size_t at = 2;
    for (long& number : header) {
        while (at < data.size() && (std::isspace(std::uint8_t(data[at])) || data[at] == '#'))
            at = data[at] == '#' ? std::min(data.find('\n', at), data.size()) : at + 1;
        while (at < data.size() && std::isdigit(std::uint8_t(data[at])) && number < (1 << 20))
            number = 10 * number + (data[at++] - '0');
    }
    ++at;  // one white space
    Image made{int(header[0]), int(header[1]), data[1] == '5' ? 1 : 3, {}};
    require(header[2] == 255, "the image has another largest value than 255; convert it first");
    require(header[0] > 0 && header[1] > 0 && header[0] * header[1] <= (1L << 28), "the image is empty or too large");
    const auto size = std::size_t(header[0]) * std::size_t(header[1]) * std::size_t(made.channels);
    require(data.size() >= at + size, "the image is truncated");
    made.pixels.assign(data.begin() + long(at), data.begin() + long(at + size));
    return made;
}

// Returns gray or RGB: gray is BT.601 luma, rounded in 16 bits.
inline Image converted(const Image& image, int channels) {
    if (image.channels == channels) return image;
    Image made{image.width, image.height, channels, {}};
    for (std::size_t i = 0; i < image.pixels.size(); i += std::size_t(image.channels)) {
        const std::uint8_t* p = &image.pixels[i];
        const int luma = channels == 3 ? p[0] : (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16;
        made.pixels.insert(made.pixels.end(), std::size_t(channels), std::uint8_t(luma));
    }
    return made;
}

struct Filter {
    double support;
    double (*weight)(double);
};

inline Filter filter_of(const std::string& name) {
    if (name == "bilinear") return {1, [](double x) { return std::max(0.0, 1 - std::abs(x)); }};
    if (name == "bicubic")
        return {2, [](double x) {
                    x = std::abs(x);
                    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
                    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
                }};
    require(name == "lanczos", "interpolation " + name + " is not known here; accepted: bilinear, bicubic, lanczos");
    return {3, [](double x) {
                const auto sinc = [](double y) { return y == 0 ? 1.0 : std::sin(y * M_PI) / (y * M_PI); };
                return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0.0;
            }};
}

// Resizes the width or the height of the part [low, high) of it, in fixed point with 22 bits after the point.
inline Image resize_side(const Image& image, bool is_width, int made, float low, float high, const Filter& filter) {
    const int size = is_width ? image.width : image.height;
    if (made == size && low == 0 && high == float(size)) return image;
    Image out{is_width ? made : image.width, is_width ? image.height : made, image.channels, {}};
    const std::size_t channels = std::size_t(image.channels), row = std::size_t(image.width) * channels;
    // Elements of the side are `step` apart, in `lines` of `inner` elements each.
    const std::size_t step = is_width ? channels : row, inner = step, lines = is_width ? std::size_t(image.height) : 1;
    const std::size_t out_row = std::size_t(out.width) * channels;
    out.pixels.resize(out_row * std::size_t(out.height));
    const double scale = double(high - low) / made, wide = std::max(1.0, scale), support = filter.support * wide;
    for (int x = 0; x < made; ++x) {
        const double center = low + (x + 0.5) * scale;
        const int first = std::max(0, int(center - support + 0.5)), last = std::min(size, int(center + support + 0.5));
        std::vector<double> weights;
        double sum = 0;
        for (int i = first; i < last; ++i) weights.push_back(filter.weight((i - center + 0.5) * (1.0 / wide)));
        for (const double weight : weights) sum += weight;
        std::vector<int> fixed;
        for (const double weight : weights) fixed.push_back(int(std::round(weight / sum * (1 << 22))));
        for (std::size_t k = 0; k < lines * inner; ++k) {
            const std::uint8_t* in = &image.pixels[k / inner * row + k % inner + std::size_t(first) * step];
            int total = 1 << 21;
            for (std::size_t i = 0; i < fixed.size(); ++i) total += in[i * step] * fixed[i];
            const std::size_t to = k / inner * out_row + k % inner + std::size_t(x) * step;
            out.pixels[to] = std::uint8_t(std::clamp(total >> 22, 0, 255));
        }
    }
    return out;
}

// Returns what the network takes, [channels][height][width]. `spec` is the manifest's preprocessing.
inline std::vector<std::uint8_t> preprocess(const Image& given, const Json& spec) {
    const int height = int(spec.num("height")), width = int(spec.num("width")), channels = int(spec.num("channels"));
    const Image image = converted(given, channels);
    double box[4] = {0, 0, double(image.width), double(image.height)};
    if (spec.str("resize") == "crop") {
        const double share = spec.num("crop_fraction");
        double cover = std::min(image.width * share / width, image.height * share / height);
        cover = std::min({cover, double(image.width) / width, double(image.height) / height});
        box[0] = std::max(0.0, (image.width - cover * width) / 2);
        box[1] = std::max(0.0, (image.height - cover * height) / 2);
        box[2] = std::min(box[0] + cover * width, double(image.width));
        box[3] = std::min(box[1] + cover * height, double(image.height));
    } else require(spec.str("resize") == "stretch", "resize " + spec.str("resize") + " is not known here");
    const Filter filter = filter_of(spec.str("interpolation"));
    Image made = resize_side(image, true, width, float(box[0]), float(box[2]), filter);
    made = resize_side(made, false, height, float(box[1]), float(box[3]), filter);
    std::vector<std::uint8_t> planes(made.pixels.size());
    const std::size_t area = std::size_t(width) * std::size_t(height), count = std::size_t(channels);
    for (std::size_t i = 0; i < made.pixels.size(); ++i) planes[i % count * area + i / count] = made.pixels[i];
    return planes;
}

}  // namespace krl
