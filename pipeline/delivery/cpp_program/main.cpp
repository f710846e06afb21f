// One engine, some inputs, its outputs, and how long it takes.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <iostream>
#include <limits>
#include <map>

#include "model.hpp"
#include "npy.hpp"

namespace {

using namespace trtforge;

constexpr char kUsageText[] =
    "usage: trtforge_model ENGINE NAME=FILE... [option...]\n"
    "  NAME=FILE.npy                the samples of an input, as the plan has them stored\n"
    "  NAME=FILE.bin:TYPE:N,H,W,C   likewise, raw values; without TYPE and shape those of the engine's input\n"
    "  --output FOLDER              write each output to FOLDER/<number>-<name>.npy\n"
    "  --runs N                     timed queries  [default: 100]\n"
    "  --warm-up N                  queries before them  [default: 10]\n"
    "  --threads N                  of a runtime on the CPU  [default: one for each core]\n"
    "  --no-cuda-graph              hand the GPU's work over kernel by kernel\n";
constexpr std::size_t kNumShown = 10;  // values of an output that are printed

struct Arguments {
  std::string engine, output;
  std::map<std::string, std::string> files;  // by the input's name
  int runs = 100, warm_up = 10;
  ModelOptions options;
};

int number_from(const std::string& flag, const std::string& text, int least) {
  std::size_t used = 0;
  int number = -1;
  try {
    number = std::stoi(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != text.size() || text.empty() || number < least) {
    throw Error(kUsage, flag + " " + text + ": a number from " + std::to_string(least) + " to " +
                            std::to_string(std::numeric_limits<int>::max()) + " is expected; correct it");
  }
  return number;
}

void add_file(Arguments& arguments, const std::string& word) {
  const std::size_t equals = word.rfind('=');
  if (equals == std::string::npos) throw Error(kUsage, word + ": NAME=FILE is expected; see --help");
  const std::string name = word.substr(0, equals);
  for (const TensorSpec& spec : engine_config().inputs) {
    if (spec.name != name) continue;
    if (!arguments.files.emplace(name, word.substr(equals + 1)).second) {
      throw Error(kUsage, "input '" + name + "' is given twice; give it once");
    }
    return;
  }
  std::string names;
  for (const TensorSpec& spec : engine_config().inputs) names += (names.empty() ? "'" : ", '") + spec.name + "'";
  throw Error(kUsage, word + ": the engine has no input '" + name + "', it takes " + names + "; name these");
}

Arguments arguments_from(const std::vector<std::string>& words) {
  Arguments arguments;
  const std::map<std::string, std::function<void(const std::string&)>> flags = {
      {"--output", [&](const std::string& value) { arguments.output = value; }},
      {"--runs", [&](const std::string& value) { arguments.runs = number_from("--runs", value, 1); }},
      {"--warm-up", [&](const std::string& value) { arguments.warm_up = number_from("--warm-up", value, 0); }},
      {"--threads",
       [&](const std::string& value) { arguments.options.num_threads = number_from("--threads", value, 0); }},
  };
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (const auto flag = flags.find(word); flag != flags.end()) {
      if (++i == words.size()) throw Error(kUsage, word + ": its value is missing; see --help");
      flag->second(words[i]);
    } else if (word == "--no-cuda-graph") {
      arguments.options.cuda_graph = false;
    } else if (word.substr(0, 2) == "--") {
      throw Error(kUsage, word + ": is no option; see --help");
    } else if (arguments.engine.empty()) {
      arguments.engine = word;
    } else {
      add_file(arguments, word);
    }
  }
  if (arguments.engine.empty()) {
    throw Error(kUsage, "ENGINE is missing: name the file " + engine_config().engine + "; see --help");
  }
  for (const TensorSpec& spec : engine_config().inputs) {
    if (arguments.files.count(spec.name) == 0) {
      throw Error(kUsage, "input '" + spec.name + "' is missing; give " + spec.name + "=FILE.npy");
    }
  }
  return arguments;
}

bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

Shape shape_from(const std::string& text) {
  Shape shape;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    shape.push_back(number_from("SHAPE", text.substr(at, comma - at), 0));
    at = comma + 1;
  }
  return shape;
}

Tensor samples_from(const std::string& file, const TensorSpec& spec) {
  if (ends_with(file, ".npy")) return read_npy(file);
  const std::size_t second = file.rfind(':');
  const std::size_t first = second == std::string::npos || second == 0 ? second : file.rfind(':', second - 1);
  if (first != std::string::npos) {
    const Type type = type_of(file.substr(first + 1, second - first - 1));
    return read_raw(file.substr(0, first), type, shape_from(file.substr(second + 1)));
  }
  const std::vector<std::string>& names = engine_config().preprocessed;
  if (std::find(names.begin(), names.end(), spec.name) != names.end()) {
    throw Error(kUsage, file + ": is preprocessed, so that its type and shape do not follow from the engine; name it " +
                            file + ":TYPE:N,H,W,C");
  }
  return read_raw(file, spec.type, spec.shape);
}

// In milliseconds: of the wall's clock, and of all CPU time of this process.
struct Clocks {
  double wall = 0, cpu = 0;
};

Clocks now() {
  timespec cpu{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now().time_since_epoch();
  return {wall.count(), static_cast<double>(cpu.tv_sec) * 1e3 + static_cast<double>(cpu.tv_nsec) / 1e6};
}

// The smallest value that at least this share of all does not exceed.
double percentile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(share * static_cast<double>(values.size()));
  return values[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

void print_values(const Tensor& tensor) {
  visit_type(tensor.type, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const std::size_t number = num_items(tensor.shape);
    for (std::size_t i = 0; i < std::min(number, kNumShown); ++i) {
      if constexpr (std::is_same_v<T, Half>) {
        std::cout << ' ' << float_from(tensor.data<T>()[i]);
      } else {
        std::cout << ' ' << +tensor.data<T>()[i];
      }
    }
    std::cout << (number > kNumShown ? " ...\n" : "\n");
  });
}

std::string file_name(std::size_t index, std::string name) {
  for (char& letter : name) {
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0 && letter != '_' && letter != '.') letter = '_';
  }
  return std::to_string(index) + "-" + name + ".npy";
}

void make_folder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw Error(kUsage, folder + ": cannot be made (" + error.message() + "); name another folder");
}

void run(const Arguments& arguments) {
  if (!arguments.output.empty()) make_folder(arguments.output);
  Model model(arguments.engine, arguments.options);
  std::vector<Tensor> samples;
  for (const TensorSpec& spec : engine_config().inputs) {
    samples.push_back(samples_from(arguments.files.at(spec.name), spec));
  }
  const Clocks before = now();
  const std::vector<Tensor> inputs = model.preprocess(std::move(samples));
  const double preprocess_ms = now().wall - before.wall;
  std::vector<Tensor> outputs = model.infer(inputs);
  for (int i = 0; i < arguments.warm_up; ++i) model.infer(inputs);
  std::vector<double> wall_ms, cpu_ms;
  for (int i = 0; i < arguments.runs; ++i) {
    const Clocks start = now();
    outputs = model.infer(inputs);
    const Clocks end = now();
    wall_ms.push_back(end.wall - start.wall);
    cpu_ms.push_back(end.cpu - start.cpu);
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string& name = engine_config().outputs[i].name;
    std::cout << name << ' ' << name_of(outputs[i].type) << ' ' << text_of(outputs[i].shape) << ':';
    print_values(outputs[i]);
    if (!arguments.output.empty()) write_npy(arguments.output + "/" + file_name(i, name), outputs[i]);
  }
  for (const std::string& note : model.notes()) std::cerr << "trtforge_model: " << note << '\n';
  std::printf("latency_ms p50 %.4f p99 %.4f, cpu_ms p50 %.4f, %d queries; preprocess_ms %.4f\n",
              percentile(wall_ms, 0.5), percentile(wall_ms, 0.99), percentile(cpu_ms, 0.5), arguments.runs,
              preprocess_ms);
  if (!std::cout.flush() || std::fflush(stdout) != 0) {
    throw Error(kUnavailable, "standard output cannot be written, as where the disk is full; free some space");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  const bool asks = std::find(words.begin(), words.end(), "--help") != words.end() ||
                    std::find(words.begin(), words.end(), "-h") != words.end();
  if (words.empty() || asks) {
    (words.empty() ? std::cerr : std::cout) << kUsageText;
    return words.empty() ? kUsage : 0;
  }
  try {
    run(arguments_from(words));
  } catch (const Error& error) {
    std::cerr << "trtforge_model: " << error.what() << '\n';
    return error.status();
  } catch (const std::exception& error) {  // Such as memory that is full.
    std::cerr << "trtforge_model: " << error.what() << "; nothing was computed\n";
    return kRefused;
  }
  return 0;
}
