// What tests ask of the sources that every delivered program has: preprocessing, and the reader of JSON.
//   probe preprocess CASE IN.npy OUT.npy     with the CASE of cases.inc
//   probe json FILE                          status 1 where it is no JSON
#include <fstream>
#include <iostream>
#include <iterator>

#include "json.hpp"
#include "npy.hpp"
#include "preprocess.hpp"

using namespace trtforge;

std::vector<Preprocess> cases() {
  std::vector<Preprocess> all;
#include "cases.inc"
  return all;
}

std::string printed(const Json& json) {
  std::string text = json.kind == Json::Kind::kString ? "'" + json.text + "'" : json.text;
  for (const Json& item : json.items) text += "[" + printed(item) + "]";
  for (const auto& [key, value] : json.fields) text += "{" + key + ":" + printed(value) + "}";
  return text;
}

int main(int, char** argv) {
  try {
    if (std::string(argv[1]) == "json") {
      std::ifstream stream(argv[2]);
      const std::string text(std::istreambuf_iterator<char>(stream), {});
      std::cout << printed(json_from(text)) << '\n';
    } else {
      const Preprocess steps = cases().at(std::stoul(argv[2]));
      write_npy(argv[4], preprocessed(read_npy(argv[3]), steps, "array"));
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
