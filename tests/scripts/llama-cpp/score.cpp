// Feeds given tokens to llama.cpp and tells, at each token of an answer, what it holds likely there.
//
//   score MODEL INPUT --attention flash|plain --feed steps|singles|batch --kv f16|f32 --threads N
//
// INPUT is a text file of completions. A completion is one line `prompt ID...` and then, for each token of its answer,
// one line `at ID ASKED...`: the token, and any further tokens whose log-probability is wanted in its place. For each
// `at` there is one line of JSON on standard output:
//
//   {"top":[[ID,LOGPROB],...],"asked":[LOGPROB,...]}
//
// `top` holds the five most likely tokens. `--feed` says in what portions a completion goes through the model:
// `steps` is what generating does (the prompt at once, then token by token), `singles` is token by token from the
// start, `batch` is everything at once.

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr size_t TOP = 5;
constexpr size_t MAX_TOKENS = 4096;

enum class Feed { steps, singles, batch };

struct Options {
    std::string model;
    std::string input;
    bool flash = false;
    Feed feed = Feed::steps;
    ggml_type kv = GGML_TYPE_F16;
    int threads = 1;
};

struct Position {
    llama_token token;
    std::vector<llama_token> asked;
};

struct Completion {
    std::vector<llama_token> prompt;
    std::vector<Position> answer;

    // The last token of the answer is predicted, but not fed.
    size_t fed() const { return prompt.size() + answer.size() - 1; }
};

using Model = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using Context = std::unique_ptr<llama_context, decltype(&llama_free)>;

[[noreturn]] void fail(const std::string & message) { throw std::runtime_error(message); }

// --- the command line and the input ------------------------------------------------------------------------

int index_of(const std::string & option, const std::string & value, const std::vector<std::string> & known) {
    const auto found = std::find(known.begin(), known.end(), value);
    if (found == known.end()) {
        fail(option + " does not know '" + value + "'");
    }
    return static_cast<int>(found - known.begin());
}

int threads_of(const std::string & value) {
    const bool is_number = value.find_first_not_of("0123456789") == std::string::npos;
    const int threads = is_number && !value.empty() && value.size() < 5 ? std::stoi(value) : 0;
    if (threads < 1) {
        fail("--threads must be a number from 1 to 9999, not '" + value + "'");
    }
    return threads;
}

Options options_of(const std::vector<std::string> & words) {
    if (words.size() < 2 || words.size() % 2 != 0) {
        fail("usage: score MODEL INPUT --attention flash|plain --feed steps|singles|batch --kv f16|f32 --threads N");
    }
    Options options;
    options.model = words[0];
    options.input = words[1];
    for (size_t i = 2; i < words.size(); i += 2) {
        const std::string & option = words[i];
        const std::string & value = words[i + 1];
        if (option == "--attention") {
            options.flash = index_of(option, value, {"plain", "flash"}) == 1;
        } else if (option == "--feed") {
            options.feed = static_cast<Feed>(index_of(option, value, {"steps", "singles", "batch"}));
        } else if (option == "--kv") {
            options.kv = index_of(option, value, {"f16", "f32"}) == 1 ? GGML_TYPE_F32 : GGML_TYPE_F16;
        } else if (option == "--threads") {
            options.threads = threads_of(value);
        } else {
            fail("unknown option " + option);
        }
    }
    return options;
}

std::vector<llama_token> tokens_of(std::istringstream & words, llama_token vocabulary) {
    std::vector<llama_token> tokens;
    llama_token token;
    while (words >> token) {
        if (token < 0 || token >= vocabulary) {
            fail(std::to_string(token) + " is not a token of this model, which has " + std::to_string(vocabulary));
        }
        tokens.push_back(token);
    }
    if (!words.eof()) {
        fail("a token is not a number");
    }
    if (tokens.empty()) {
        fail("there are no tokens");
    }
    return tokens;
}

void read_line(const std::string & line, llama_token vocabulary, std::vector<Completion> & completions) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "prompt") {
        if (!completions.empty() && completions.back().answer.empty()) {
            fail("the completion before has no answer");
        }
        completions.push_back({tokens_of(words, vocabulary), {}});
    } else if (kind == "at") {
        if (completions.empty()) {
            fail("an answer needs a prompt before it");
        }
        const std::vector<llama_token> tokens = tokens_of(words, vocabulary);
        completions.back().answer.push_back({tokens[0], {tokens.begin() + 1, tokens.end()}});
    } else {
        fail("a line begins with 'prompt' or 'at', not '" + kind + "'");
    }
    if (completions.back().fed() > MAX_TOKENS) {
        fail("a completion has more than " + std::to_string(MAX_TOKENS) + " tokens");
    }
}

std::vector<Completion> read_input(const std::string & path, llama_token vocabulary) {
    std::ifstream file(path);
    if (!file) {
        fail("cannot read " + path);
    }
    std::vector<Completion> completions;
    std::string line;
    for (size_t number = 1; std::getline(file, line); ++number) {
        try {
            read_line(line, vocabulary, completions);
        } catch (const std::exception & error) {
            fail(path + ":" + std::to_string(number) + ": " + error.what());
        }
    }
    if (file.bad()) {
        fail("cannot read " + path);
    }
    if (completions.empty() || completions.back().answer.empty()) {
        fail(path + " ends before an answer");
    }
    return completions;
}

// --- the model ---------------------------------------------------------------------------------------------

void log_trouble(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

Model load(const Options & options) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    Model model(llama_model_load_from_file(options.model.c_str(), params), llama_model_free);
    if (!model) {
        fail("cannot load " + options.model);
    }
    return model;
}

Context context_of(llama_model * model, const Options & options, size_t tokens) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(tokens);
    params.n_threads = params.n_threads_batch = options.threads;
    params.flash_attn_type = options.flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = options.kv;
    Context context(llama_init_from_model(model, params), llama_free);
    if (!context) {
        fail("cannot make a context of " + std::to_string(tokens) + " tokens");
    }
    return context;
}

// One portion of a completion; its logits are kept from position `scored` on.
class Batch {
public:
    Batch(const std::vector<llama_token> & tokens, size_t begin, size_t end, size_t scored)
        : batch(llama_batch_init(static_cast<int32_t>(end - begin), 0, 1)) {
        batch.n_tokens = static_cast<int32_t>(end - begin);
        for (size_t i = begin; i < end; ++i) {
            const size_t row = i - begin;
            batch.token[row] = tokens[i];
            batch.pos[row] = static_cast<llama_pos>(i);
            batch.n_seq_id[row] = 1;
            batch.seq_id[row][0] = 0;
            batch.logits[row] = i >= scored;
        }
    }
    ~Batch() { llama_batch_free(batch); }
    Batch(const Batch &) = delete;
    Batch & operator=(const Batch &) = delete;

    llama_batch batch;
};

// --- scoring -----------------------------------------------------------------------------------------------

double log_sum_exp(const float * logits, llama_token vocabulary) {
    const double highest = *std::max_element(logits, logits + vocabulary);
    double sum = 0.0;
    for (llama_token token = 0; token < vocabulary; ++token) {
        sum += std::exp(logits[token] - highest);
    }
    const double result = highest + std::log(sum);
    if (!std::isfinite(result)) {
        fail("the model gave logits that are not numbers");
    }
    return result;
}

// The most likely tokens, best first; of equals the one with the lower number.
std::vector<llama_token> most_likely(const float * logits, llama_token vocabulary) {
    std::vector<llama_token> tokens(static_cast<size_t>(vocabulary));
    std::iota(tokens.begin(), tokens.end(), 0);
    const size_t count = std::min(TOP, tokens.size());
    const auto is_before = [logits](llama_token a, llama_token b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    };
    std::partial_sort(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count), tokens.end(), is_before);
    tokens.resize(count);
    return tokens;
}

void print_scores(const float * logits, llama_token vocabulary, const Position & position) {
    const double log_sum = log_sum_exp(logits, vocabulary);
    const char * separator = "";
    std::printf("{\"top\":[");
    for (const llama_token token : most_likely(logits, vocabulary)) {
        std::printf("%s[%d,%.6f]", separator, token, logits[token] - log_sum);
        separator = ",";
    }
    separator = "";
    std::printf("],\"asked\":[");
    for (const llama_token token : position.asked) {
        std::printf("%s%.6f", separator, logits[token] - log_sum);
        separator = ",";
    }
    std::printf("]}\n");
}

// Where the portions of a completion end.
std::vector<size_t> portions(const Completion & completion, Feed feed) {
    std::vector<size_t> ends;
    size_t first = 1;
    if (feed == Feed::steps) {
        first = completion.prompt.size();
    } else if (feed == Feed::batch) {
        first = completion.fed();
    }
    for (size_t end = first; end <= completion.fed(); ++end) {
        ends.push_back(end);
    }
    return ends;
}

void score(llama_context * context, llama_token vocabulary, const Completion & completion, Feed feed) {
    llama_memory_clear(llama_get_memory(context), true);
    std::vector<llama_token> tokens = completion.prompt;
    for (const Position & position : completion.answer) {
        tokens.push_back(position.token);
    }
    // The last token of the prompt already predicts the first of the answer.
    const size_t scored = completion.prompt.size() - 1;
    size_t begin = 0;
    for (const size_t end : portions(completion, feed)) {
        const Batch portion(tokens, begin, end, scored);
        if (llama_decode(context, portion.batch) != 0) {
            fail("llama.cpp could not compute tokens " + std::to_string(begin) + " to " + std::to_string(end));
        }
        for (size_t i = std::max(begin, scored); i < end; ++i) {
            const float * logits = llama_get_logits_ith(context, static_cast<int32_t>(i - begin));
            if (logits == nullptr) {
                fail("llama.cpp gave no logits for token " + std::to_string(i));
            }
            print_scores(logits, vocabulary, completion.answer[i - scored]);
        }
        begin = end;
    }
}

void run(const Options & options) {
    llama_log_set(log_trouble, nullptr);
    llama_backend_init();
    const Model model = load(options);
    const llama_token vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    const std::vector<Completion> completions = read_input(options.input, vocabulary);
    size_t longest = 0;
    for (const Completion & completion : completions) {
        longest = std::max(longest, completion.fed());
    }
    const Context context = context_of(model.get(), options, longest);
    for (const Completion & completion : completions) {
        score(context.get(), vocabulary, completion, options.feed);
    }
    if (std::fflush(stdout) != 0) {
        fail("cannot write the results");
    }
}

}  // namespace

int main(int argc, char ** argv) {
    try {
        run(options_of({argv + 1, argv + argc}));
    } catch (const std::exception & error) {
        std::fprintf(stderr, "score: %s\n", error.what());
        return 1;
    }
    return 0;
}
