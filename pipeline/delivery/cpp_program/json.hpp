// A strict reader of JSON (RFC 8259), for texts of a signature.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace trtforge {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  std::string text;  // of a string, or of a number as it is written
  std::vector<Json> items;
  std::map<std::string, Json> fields;

  // What is missing is null, so that a path through a text of another kind ends in an empty text.
  const Json& operator[](const std::string& key) const;
  const std::string& string() const;  // empty where it is none
};

// Throws std::runtime_error where the text is not JSON, names a key twice, or is nested too deep.
Json json_from(const std::string& text);

}  // namespace trtforge
