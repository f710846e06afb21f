// DSSE ("Dead Simple Signing Envelope", protocol version 1): what is signed is a text with its media type. The text is
// an in-toto statement, whose first subject is the engine, by its SHA-256.
#include "signature.hpp"

#include <openssl/evp.h>

#include <map>
#include <memory>
#include <stdexcept>

#include "json.hpp"
#include "npy.hpp"

namespace trtforge {
namespace {

constexpr char kEnding[] = ".dsse.json";
constexpr char kPayloadType[] = "application/vnd.in-toto+json";
constexpr char kStatementType[] = "https://in-toto.io/Statement/v1";
constexpr char kRecord[] = "record";       // the subject that is the engine's record, which this program does not read
constexpr char kPlugin[] = "plugin:";      // what the names of libraries begin with
constexpr std::size_t kLargest = 1 << 20;  // bytes of an envelope
constexpr unsigned char kDer[] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};  // RFC 8410

using Key = std::array<std::uint8_t, 32>;
using Bytes = std::vector<std::uint8_t>;

struct Freed {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

Bytes base64_from(const std::string& text) {
  Bytes bytes(text.size() / 4 * 3 + 3);
  const int length =
      EVP_DecodeBlock(bytes.data(), reinterpret_cast<const unsigned char*>(text.data()), static_cast<int>(text.size()));
  if (length < 0 || text.size() % 4 != 0) throw std::runtime_error("no base64");
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  bytes.resize(static_cast<std::size_t>(length) - padding);
  return bytes;
}

std::string id_of(const Key& key) {
  Bytes der(std::begin(kDer), std::end(kDer));
  der.insert(der.end(), key.begin(), key.end());
  return sha256_of(der);
}

bool is_signed_by(const Key& key, const std::string& message, const Bytes& signature) {
  const std::unique_ptr<EVP_PKEY, Freed> handle(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()));
  const std::unique_ptr<EVP_MD_CTX, Freed> context(EVP_MD_CTX_new());
  return handle && context && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, handle.get()) == 1 &&
         EVP_DigestVerify(context.get(), signature.data(), signature.size(),
                          reinterpret_cast<const unsigned char*>(message.data()), message.size()) == 1;
}

// The text of the envelope, which one of the keys signed.
std::string signed_payload(const std::string& file, const std::vector<Key>& keys) {
  Bytes bytes;
  try {
    bytes = read_file(file);
  } catch (const Error&) {
    throw Error(kUsage, file + ": is not there, a signature of the engine is expected; copy it beside the engine");
  }
  std::string payload;
  std::multimap<std::string, Bytes> signatures;
  try {
    if (bytes.size() > kLargest) throw std::runtime_error("too large");
    const Json envelope = json_from(std::string(bytes.begin(), bytes.end()));
    if (envelope["payloadType"].string() != kPayloadType) throw std::runtime_error("of another type");
    const Bytes decoded = base64_from(envelope["payload"].string());
    payload.assign(decoded.begin(), decoded.end());
    for (const Json& each : envelope["signatures"].items) {
      signatures.emplace(each["keyid"].string(), base64_from(each["sig"].string()));
    }
  } catch (const std::runtime_error&) {
    throw Error(kUsage, file + ": is no signature of trtforge; sign again, or copy it again");
  }
  const std::string type = kPayloadType;
  const std::string message =
      "DSSEv1 " + std::to_string(type.size()) + " " + type + " " + std::to_string(payload.size()) + " " + payload;
  bool is_named = false;
  for (const Key& key : keys) {
    const auto range = signatures.equal_range(id_of(key));
    for (auto entry = range.first; entry != range.second; ++entry) {
      if (is_signed_by(key, message, entry->second)) return payload;
      is_named = true;
    }
  }
  throw Error(kUsage, file + (is_named ? ": was changed after it was signed; it is not believed, copy it again"
                                       : ": is not signed by a key that this program trusts; sign it with that key"));
}

// That the statement is of these very files.
void check_statement(const std::string& file, const std::string& payload, const EngineConfig& config) {
  std::string engine;
  std::map<std::string, std::string> others;
  try {
    const Json statement = json_from(payload);
    if (statement["_type"].string() != kStatementType) throw std::runtime_error("of another type");
    for (const Json& subject : statement["subject"].items) {
      const std::string& name = subject["name"].string();
      if (name == kRecord) continue;
      const std::string& digest = subject["digest"]["sha256"].string();
      if (engine.empty()) {
        engine = digest;
      } else {
        others[name] = digest;
      }
    }
  } catch (const std::runtime_error&) {
    engine.clear();
  }
  bool fits = engine == config.sha256;
  for (const NamedDigest& weights : config.weights) fits = fits && others[weights.name] == weights.sha256;
  for (const NamedDigest& plugin : config.plugins) fits = fits && others[kPlugin + plugin.name] == plugin.sha256;
  if (!fits) throw Error(kUsage, file + ": is the signature of another engine; copy both again");
}

}  // namespace

std::string sha256_of(const std::vector<std::uint8_t>& bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr) != 1) {
    throw Error(kUnavailable, "libcrypto: has no SHA-256 here; allow it in OpenSSL's configuration");
  }
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

std::string checked_neighbour(const std::string& engine, const NamedDigest& file) {
  const std::size_t slash = engine.rfind('/');
  const std::string path = (slash == std::string::npos ? std::string("./") : engine.substr(0, slash + 1)) + file.name;
  if (sha256_of(read_file(path)) != file.sha256) {
    throw Error(kUsage, path + ": is not the file that this program was written for (SHA-256 differs); copy it again");
  }
  return path;
}

std::vector<std::uint8_t> checked_engine(const std::string& engine, const EngineConfig& config) {
  std::vector<std::uint8_t> bytes = read_file(engine);
  if (sha256_of(bytes) != config.sha256) {
    throw Error(kUsage, engine +
                            ": is not the engine that this program was written for (SHA-256 differs); copy it "
                            "again, or build the program again after a new delivery");
  }
  for (const NamedDigest& weights : config.weights) checked_neighbour(engine, weights);
  if (!config.trusted_keys.empty()) {
    const std::string file = engine + kEnding;
    check_statement(file, signed_payload(file, config.trusted_keys), config);
  }
  return bytes;
}

}  // namespace trtforge
