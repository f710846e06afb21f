#include "json.hpp"

#include <cctype>
#include <cstdint>
#include <stdexcept>
#include <utility>

namespace trtforge {
namespace {

constexpr int kDeepest = 64;

class Reader {
 public:
  explicit Reader(const std::string& text) : text_(text) {}

  Json whole() {
    Json value = any(0);
    skip_space();
    if (at_ != text_.size()) fail();
    return value;
  }

 private:
  [[noreturn]] void fail() const { throw std::runtime_error("no JSON at byte " + std::to_string(at_)); }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
  }

  bool take(char wanted) {
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  void need(char wanted) {
    if (!take(wanted)) fail();
  }

  void word(const std::string& letters) {
    if (text_.compare(at_, letters.size(), letters) != 0) fail();
    at_ += letters.size();
  }

  Json any(int depth) {
    if (depth > kDeepest) fail();
    skip_space();
    Json value;
    switch (peek()) {
      case '{': value = object(depth); break;
      case '[': value = array(depth); break;
      case '"':
        value.kind = Json::Kind::kString;
        value.text = string();
        break;
      case 't': value.kind = Json::Kind::kBool, word("true"); break;
      case 'f': value.kind = Json::Kind::kBool, word("false"); break;
      case 'n': word("null"); break;
      default: value.kind = Json::Kind::kNumber; value.text = number();
    }
    return value;
  }

  Json object(int depth) {
    Json value;
    value.kind = Json::Kind::kObject;
    need('{');
    skip_space();
    if (take('}')) return value;
    do {
      skip_space();
      std::string key = string();
      skip_space();
      need(':');
      if (!value.fields.emplace(std::move(key), any(depth + 1)).second) fail();
      skip_space();
    } while (take(','));
    need('}');
    return value;
  }

  Json array(int depth) {
    Json value;
    value.kind = Json::Kind::kArray;
    need('[');
    skip_space();
    if (take(']')) return value;
    do {
      value.items.push_back(any(depth + 1));
      skip_space();
    } while (take(','));
    need(']');
    return value;
  }

  std::size_t digits() {
    const std::size_t begin = at_;
    while (std::isdigit(static_cast<unsigned char>(peek())) != 0) ++at_;
    return at_ - begin;
  }

  std::string number() {
    const std::size_t begin = at_;
    take('-');
    if (!take('0') && digits() == 0) fail();
    if (take('.') && digits() == 0) fail();
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (digits() == 0) fail();
    }
    return text_.substr(begin, at_ - begin);
  }

  std::uint32_t hexadecimal() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const int digit = std::tolower(static_cast<unsigned char>(peek()));
      if (std::isxdigit(digit) == 0) fail();
      value = value << 4 | static_cast<std::uint32_t>(std::isdigit(digit) != 0 ? digit - '0' : digit - 'a' + 10);
    }
    return value;
  }

  void escape(std::string& value) {
    static const std::string kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const std::size_t index = at_ < text_.size() ? kLetters.find(text_[at_]) : std::string::npos;
    if (index != std::string::npos) {
      value += kMeanings[index];
      ++at_;
      return;
    }
    need('u');
    std::uint32_t code = hexadecimal();
    if (code >= 0xd800 && code < 0xdc00) {
      need('\\');
      need('u');
      const std::uint32_t low = hexadecimal();
      if (low < 0xdc00 || low >= 0xe000) fail();
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      fail();
    }
    append_utf8(value, code);
  }

  static void append_utf8(std::string& value, std::uint32_t code) {
    const auto tail = [&](int shift) { value += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
    if (code < 0x80) {
      value += static_cast<char>(code);
    } else if (code < 0x800) {
      value += static_cast<char>(0xc0 | code >> 6), tail(0);
    } else if (code < 0x10000) {
      value += static_cast<char>(0xe0 | code >> 12), tail(6), tail(0);
    } else {
      value += static_cast<char>(0xf0 | code >> 18), tail(12), tail(6), tail(0);
    }
  }

  std::string string() {
    std::string value;
    need('"');
    while (!take('"')) {
      if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) fail();
      if (take('\\')) {
        escape(value);
      } else {
        value += text_[at_++];
      }
    }
    return value;
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

}  // namespace

const Json& Json::operator[](const std::string& key) const {
  static const Json kNothing;
  const auto entry = fields.find(key);
  return entry == fields.end() ? kNothing : entry->second;
}

const std::string& Json::string() const {
  static const std::string kEmpty;
  return kind == Kind::kString ? text : kEmpty;
}

Json json_from(const std::string& text) { return Reader(text).whole(); }

}  // namespace trtforge
