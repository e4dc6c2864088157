#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace splatopt {

namespace {
// A step has some ten passes of about a millisecond: a worker that spins this long between them is not put
// to sleep and woken again each time, and still leaves the core alone soon after the last pass.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}
}  // namespace

struct Pool::State {
    std::vector<std::thread> workers;
    std::mutex mutex, callers;
    std::condition_variable wake, done;
    const std::function<void(int64_t, int)>* work = nullptr;
    std::atomic<int64_t> next{0};
    int64_t tasks = 0;
    std::atomic<uint64_t> generation{0};
    std::atomic<int> busy{0};
    bool stopping = false;
    std::exception_ptr failure;
    const pid_t process = getpid();

    // Threads do not follow a fork: in a child the caller does all tasks, and leaves what is theirs alone.
    bool is_forked() const { return getpid() != process; }

    void drain(int thread) {
        try {
            for (int64_t task; (task = next.fetch_add(1)) < tasks;) (*work)(task, thread);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
            next.store(tasks);
        }
    }

    void serve(int thread) {
        uint64_t seen = 0;
        for (;;) {
            for (int i = 0; i < kSpins && generation.load() == seen; ++i) relax();
            if (generation.load() == seen) {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return stopping || generation.load() != seen; });
            }
            if (stopping) return;
            seen = generation.load();
            drain(thread);
            if (busy.fetch_sub(1) == 1) {
                std::lock_guard<std::mutex> lock(mutex);
                done.notify_one();
            }
        }
    }
};

Pool::Pool(int threads) : state_(std::make_unique<State>()) {
    for (int thread = 1; thread < threads; ++thread)
        state_->workers.emplace_back([state = state_.get(), thread] { state->serve(thread); });
}

Pool::~Pool() {
    if (state_->is_forked()) {
        (void)state_.release();
        return;
    }
    {
        std::lock_guard<std::mutex> lock(state_->mutex);
        state_->stopping = true;
        state_->generation.fetch_add(1);
    }
    state_->wake.notify_all();
    for (std::thread& worker : state_->workers) worker.join();
}

int Pool::threads() const { return static_cast<int>(state_->workers.size()) + 1; }

void Pool::run(int64_t tasks, const std::function<void(int64_t, int)>& work) {
    State& s = *state_;
    if (s.is_forked()) {
        for (int64_t task = 0; task < tasks; ++task) work(task, 0);
        return;
    }
    std::lock_guard<std::mutex> turn(s.callers);
    if (s.workers.empty() || tasks <= 1) {
        for (int64_t task = 0; task < tasks; ++task) work(task, 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        s.work = &work;
        s.tasks = tasks;
        s.next.store(0);
        s.failure = nullptr;
        s.busy.store(static_cast<int>(s.workers.size()));
        s.generation.fetch_add(1);
    }
    s.wake.notify_all();
    s.drain(0);
    for (int i = 0; i < kSpins && s.busy.load(); ++i) relax();
    if (s.busy.load()) {
        std::unique_lock<std::mutex> lock(s.mutex);
        s.done.wait(lock, [&] { return s.busy.load() == 0; });
    }
    if (s.failure) std::rethrow_exception(s.failure);
}

}  // namespace splatopt
