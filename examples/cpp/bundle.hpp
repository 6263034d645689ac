// A krl bundle of a classifier: manifest.json, its digest, and files that are checked before they are used.
// docs/bundle-format.md specifies the format. What this example does not read is refused with its reason.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace krl {

inline void require(bool good, const std::string& message) {
    if (!good) throw std::runtime_error(message);
}

// SHA-256 (FIPS 180-4), in hexadecimal.
inline std::string sha256(const std::string& data) {
    static const std::uint32_t constants[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    std::array<std::uint32_t, 8> hash = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const auto turn = [](std::uint32_t x, int by) { return x >> by | x << (32 - by); };
    std::string padded = data + '\x80';
    padded.append((120 - padded.size() % 64) % 64, '\0');
    for (int shift = 56; shift >= 0; shift -= 8) padded += char(std::uint64_t(data.size()) * 8 >> shift & 255);
    for (std::size_t start = 0; start < padded.size(); start += 64) {
        std::uint32_t w[64] = {};
        for (int i = 0; i < 64; ++i) {
            for (int j = 0; i < 16 && j < 4; ++j) w[i] = w[i] << 8 | std::uint8_t(padded[start + 4 * i + j]);
            const std::uint32_t a = i < 16 ? 0 : w[i - 15], b = i < 16 ? 0 : w[i - 2];
            if (i >= 16) w[i] = w[i - 16] + w[i - 7];
            w[i] += (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        auto s = hash;
        for (int i = 0; i < 64; ++i) {
            const auto one = turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25);
            const auto two = turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22);
            const auto first = s[7] + one + ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
            const auto second = two + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
        }
        for (int i = 0; i < 8; ++i) hash[i] += s[i];
    }
    std::string text;
    for (const auto word : hash)
        for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    return text;
}

// A JSON value: of an object the names of its items, which are in the same order.
struct Json {
    enum Kind { null, boolean, number, string, array, object } kind = null;
    double value = 0;
    std::string text;
    std::vector<Json> items;
    std::vector<std::string> names;

    const Json* find(const std::string& name) const {
        for (std::size_t i = 0; i < names.size(); ++i)
            if (names[i] == name) return &items[i];
        return nullptr;
    }
    const Json& at(const std::string& name, Kind wanted) const {
        const Json* found = find(name);
        require(found && found->kind == wanted, "manifest.json: " + name + " is missing, or of another type");
        return *found;
    }
    const std::string& str(const std::string& name) const { return at(name, string).text; }
    double num(const std::string& name) const { return at(name, number).value; }
};

// Reads the JSON that krl writes: UTF-8, and \u escapes of control characters alone.
class Reader {
public:
    explicit Reader(const std::string& text) : text_(text) {}
    Json whole() {
        Json found = read(0);
        require(next() == '\0' && at_ >= text_.size(), "manifest.json: something follows the object");
        return found;
    }

private:
    char next() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
        return at_ < text_.size() ? text_[at_] : '\0';
    }
    bool take(const std::string& word) {
        next();
        const bool here = text_.compare(at_, word.size(), word) == 0;
        at_ += here ? word.size() : 0;
        return here;
    }
    Json read(int depth) {
        require(depth < 64, "manifest.json is nested too deeply");
        Json made;
        if (take("{") || take("[")) {
            const bool object = text_[at_ - 1] == '{';
            const std::string end = object ? "}" : "]";
            made.kind = object ? Json::object : Json::array;
            for (bool first = true; !take(end); first = false) {
                require(first || take(","), "manifest.json is damaged");
                if (object) {
                    made.names.push_back(quoted());
                    require(take(":"), "manifest.json is damaged");
                }
                made.items.push_back(read(depth + 1));
            }
        } else if (next() == '"') {
            made.kind = Json::string;
            made.text = quoted();
        } else if (take("true") || take("false")) {
            made.kind = Json::boolean;
            made.value = text_[at_ - 2] == 'u';
        } else if (!take("null")) {
            const char* begin = text_.c_str() + at_;
            char* end = nullptr;
            made.kind = Json::number;
            made.value = std::strtod(begin, &end);
            require(end != begin, "manifest.json is damaged");
            at_ += std::size_t(end - begin);
        }
        return made;
    }
    std::string quoted() {
        require(take("\""), "manifest.json is damaged");
        std::string made;
        while (at_ < text_.size() && text_[at_] != '"') {
            char letter = text_[at_++];
            if (letter == '\\' && at_ < text_.size()) {
                letter = text_[at_++];
                const auto known = std::string("bfnrt").find(letter);
                if (known != std::string::npos) letter = "\b\f\n\r\t"[known];
                if (letter == 'u') letter = char(std::strtol(text_.substr(at_, 4).c_str(), nullptr, 16)), at_ += 4;
            }
            made += letter;
        }
        ++at_;
        return made;
    }
    const std::string& text_;
    std::size_t at_ = 0;
};

inline std::string read_file(const std::string& path, std::size_t most) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const auto size = file ? std::streamoff(file.tellg()) : -1;
    require(size >= 0, path + " cannot be read");
    require(std::size_t(size) <= most, path + " has more than " + std::to_string(most) + " bytes");
    std::string data(std::size_t(size), '\0');
    require(bool(file.seekg(0).read(data.data(), size)), path + " cannot be read");
    return data;
}

// An opened bundle, whose manifest is unchanged since krl wrote it.
struct Bundle {
    std::string folder;
    Json manifest;

    explicit Bundle(const std::string& path) : folder(path) {
        std::string text = read_file(path + "/manifest.json", 16 << 20);  // krl reads no larger ones
        manifest = Reader(text).whole();
        require(manifest.num("schema_version") == 3, "the bundle has another schema version than 3");
        const std::string digest = manifest.str("digest"), line = "\n \"digest\": \"";
        const auto place = text.find(line + digest + "\"");
        require(digest.size() == 64 && place != std::string::npos, "manifest.json has no digest");
        require(sha256(text.erase(place + line.size(), 64)) == digest, "manifest.json was changed: its digest differs");
    }
    // Returns the bytes of a file, whose hash is the manifest's: these very bytes are to be used.
    std::string read(const std::string& name) const {
        const bool leaves = name.empty() || name[0] == '/' || name.find("..") != name.npos ||
                            name.find_first_of("\\:") != name.npos;
        require(!leaves, "the manifest names a file outside of the bundle: " + name);
        const Json& entry = manifest.at("files", Json::object).at(name, Json::object);
        std::string data = read_file(folder + "/" + name, std::size_t(entry.num("size")));
        require(sha256(data) == entry.str("sha256"), name + " is damaged or was changed: its SHA-256 differs");
        return data;
    }
};

}  // namespace krl
