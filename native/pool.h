// A small pool of threads that stay alive between passes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace splatopt {

class Pool {
public:
    // threads counts the calling thread too.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const;

    // One caller at a time: a second one waits. Calls work(task, thread) for every task in [0, tasks), each once, on
    // any thread. What a task writes must not depend on which thread ran it: that is what keeps results the same for
    // any thread count.
    void run(int64_t tasks, const std::function<void(int64_t task, int thread)>& work);

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace splatopt
