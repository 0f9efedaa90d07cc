// Session files: what a session holds, as a safetensors file that the safetensors library can read too. The schema is
// in session_file.cpp.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "core/buffer.h"
#include "core/function_ref.h"
#include "model/session.h"

namespace llama2cpp {

// Locks the session. The file appears whole or not at all, and until then replaces nothing. Throws
// std::system_error. `poll` is called about every 50 ms of a long call and may throw to end it; so with the others.
void save_session(Session& session, const std::string& path, FunctionRef<void()> poll);

// A session that goes on, bit for bit, as the saved one would. context 0: the saved session's. adapter: the one that it had.
// Throws FormatError for a file that is damaged, foreign, of another model, or of another type of keys and values or of
// activations; std::invalid_argument for a context that does not hold the tokens; std::system_error.
std::unique_ptr<Session> load_session(std::shared_ptr<const Model> model, const std::string& path, std::int64_t context,
                                      FunctionRef<void()> poll, std::shared_ptr<const Adapter> adapter = nullptr);

// The same for a file in memory, whose errors need not name it.
std::unique_ptr<Session> read_session(std::shared_ptr<const Model> model, const Buffer& file, std::int64_t context,
                                      FunctionRef<void()> poll, std::shared_ptr<const Adapter> adapter = nullptr);

// Gives `write` the bytes of the file, front to back. The caller has locked the session.
void write_session(const Session& session, FunctionRef<void(std::span<const std::byte>)> write,
                   FunctionRef<void()> poll);

}  // namespace llama2cpp
