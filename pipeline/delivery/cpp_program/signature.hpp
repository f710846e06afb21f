// Whether an engine's file is the one that this program was written for, before a runtime sees any of it.
#pragma once

#include <string>
#include <vector>

#include "engine_config.hpp"

namespace trtforge {

std::string sha256_of(const std::vector<std::uint8_t>& bytes);  // hexadecimal

// The file `name` beside the engine, whose content has this digest.
std::string checked_neighbour(const std::string& engine, const NamedDigest& file);

// The engine's bytes: by their SHA-256, with the files of its weights; and where the configuration names keys, by an
// Ed25519 signature of one of them in ENGINE.dsse.json, which must name the same files.
std::vector<std::uint8_t> checked_engine(const std::string& engine, const EngineConfig& config);

}  // namespace trtforge
