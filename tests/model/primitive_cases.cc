// SPDX-License-Identifier: Apache-2.0
//
// More primitives, by threads, as in waiting_cases.cc.
#include <memory>
#include <new>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "fiber/barrier.cc"
#include "fiber/condition.cc"
#include "fiber/deadline.cc"
#include "fiber/internal/cancel_node.cc"
#include "fiber/internal/park.cc"
#include "fiber/internal/wait.cc"
#include "fiber/internal/wait_queue.cc"
#include "fiber/mutex.cc"
#include "fiber/once.cc"
#include "fiber/shared_mutex.cc"
#include "tests/model/case_list.h"

// What fibers would need.
namespace fiber::internal {
ThreadState& Switch(ThreadState& thread, Record*, After) {
  Fatal("a thread cannot switch");
  return thread;
}
void YieldFiber() { Fatal("a thread cannot yield"); }
std::string Describe(const Record&) { return "fiber"; }
std::string DescribeUnheld(Record&) { return "fiber"; }
void CheckCanarySlow(const WaitBlock&) {}
}  // namespace fiber::internal

namespace model {
namespace {

using fiber::Deadline;
using std::make_shared;

// It may pass at any time: see clock_ns().
const Deadline kSoon = Deadline::AtNanos(int64_t{1} << 60);

// An object whose end is part of the case.
template <class T>
struct Mortal {
  template <class... A>
  explicit Mortal(A... arguments) {
    new (bytes) T(arguments...);
  }
  T& operator*() { return *std::launder(reinterpret_cast<T*>(bytes)); }
  T* operator->() { return &**this; }
  alignas(T) std::byte bytes[sizeof(T)];
};

// SharedMutex.
// -------------------------------------------------------------------------------------------------

struct Ledger {
  fiber::SharedMutex mutex;
  int readers = 0;
  int writers = 0;
  int written = 0;
  void Read() {
    Touch(&readers);
    Check(writers == 0, "a reader meets a writer");
    ++readers;
    Touch(&readers);
    --readers;
  }
  void Write() {
    Touch(&readers);
    Check(++writers == 1 && readers == 0, "a writer is not alone");
    Touch(&readers);
    --writers;
    ++written;
  }
  void LockAndRead() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex.lock_shared();
    Read();
    mutex.unlock_shared();
  }
  void LockAndWrite() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex.lock();
    Write();
    mutex.unlock();
  }
  void LockForAWhileAndRead() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!mutex.LockShared(kSoon).ok()) return;
    Read();
    mutex.unlock_shared();
  }
  void LockForAWhileAndWrite() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!mutex.Lock(kSoon).ok()) return;
    Write();
    mutex.unlock();
  }
  void TryLockAndRead() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!mutex.try_lock_shared()) return;
    Read();
    mutex.unlock_shared();
  }
  void CheckFree(int least_written) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Check(written >= least_written, "a writer did not get in");
    Check(mutex.try_lock(), "it is held in the end");
    mutex.unlock();
  }
};

Case SharedMutexForTwo() {
  auto ledger = make_shared<Ledger>();
  return {.threads = {[ledger] { ledger->LockAndRead(); }, [ledger] { ledger->LockAndWrite(); }},
          .finish = [ledger] { ledger->CheckFree(1); }};
}

Case SharedMutexForTwoTwice() {
  auto ledger = make_shared<Ledger>();
  auto use = [ledger] {
    ledger->LockAndRead();
    ledger->LockAndWrite();
  };
  return {.threads = {use, use}, .finish = [ledger] { ledger->CheckFree(2); }};
}

Case SharedMutexForThree() {
  auto ledger = make_shared<Ledger>();
  auto read = [ledger] { ledger->LockAndRead(); };
  return {.threads = {read, read, [ledger] { ledger->LockAndWrite(); }},
          .finish = [ledger] { ledger->CheckFree(1); }};
}

Case SharedMutexForTwoWriters() {
  auto ledger = make_shared<Ledger>();
  auto write = [ledger] { ledger->LockAndWrite(); };
  return {.threads = {write, write, [ledger] { ledger->LockAndRead(); }},
          .finish = [ledger] { ledger->CheckFree(2); }};
}

Case SharedMutexWithTimeouts() {
  auto ledger = make_shared<Ledger>();
  return {.threads = {[ledger] { ledger->LockForAWhileAndWrite(); },
                      [ledger] { ledger->LockForAWhileAndRead(); },
                      [ledger] { ledger->LockAndWrite(); }},
          .finish = [ledger] { ledger->CheckFree(1); }};
}

Case SharedMutexWithTries() {
  auto ledger = make_shared<Ledger>();
  return {.threads = {[ledger] { ledger->LockAndWrite(); }, [ledger] { ledger->TryLockAndRead(); },
                      [ledger] { ledger->LockAndRead(); }},
          .finish = [ledger] { ledger->CheckFree(1); }};
}

// A reader stays until another has come in, which waits behind a writer, which waits for the first:
// until it gives up.
Case SharedMutexWriterGivesUp() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  auto ledger = make_shared<Ledger>();
  auto is_in = make_shared<bool>(false);
  ledger->mutex.lock_shared();
  return {.threads = {[ledger, is_in]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        Await(is_in.get(), [is_in] { return *is_in; });
                        ledger->mutex.unlock_shared();
                      },
                      [ledger] { ledger->LockForAWhileAndWrite(); },
                      [ledger, is_in]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        ledger->mutex.lock_shared();
                        Touch(is_in.get());
                        *is_in = true;
                        ledger->mutex.unlock_shared();
                      }},
          .finish = [ledger] { ledger->CheckFree(0); }};
}

Case SharedMutexIsDestroyedAfterItsLastReader() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  auto mutex = make_shared<Mortal<fiber::SharedMutex>>();
  (*mutex)->lock_shared();
  return {.threads = {[mutex]() ABSL_NO_THREAD_SAFETY_ANALYSIS { (*mutex)->unlock_shared(); },
                      [mutex]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        (*mutex)->lock();
                        (*mutex)->unlock();
                        Destroy(**mutex);
                      }}};
}

Case SharedMutexIsDestroyedAfterItsLastWriter() ABSL_NO_THREAD_SAFETY_ANALYSIS {
  auto mutex = make_shared<Mortal<fiber::SharedMutex>>();
  (*mutex)->lock();
  return {.threads = {[mutex]() ABSL_NO_THREAD_SAFETY_ANALYSIS { (*mutex)->unlock(); },
                      [mutex]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        (*mutex)->lock_shared();
                        (*mutex)->unlock_shared();
                        Destroy(**mutex);
                      }}};
}

// Condition.
// -------------------------------------------------------------------------------------------------

// A token that is put down under a mutex, and a condition for those who want it.
struct Token {
  fiber::Mutex mutex;
  fiber::Condition put_down;
  bool is_there = false;
  void PutDown() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex.lock();
    is_there = true;
    mutex.unlock();
    put_down.Signal();
  }
  bool TakeBefore(Deadline deadline) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex.lock();
    const bool is_taken = put_down.Wait(mutex, [this] { return is_there; }, deadline).ok();
    Check(!is_taken || is_there, "it returned before the token was there");
    if (is_taken) is_there = false;
    mutex.unlock();
    return is_taken;
  }
  void CheckThere() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Check(mutex.try_lock(), "the mutex is held in the end");
    Check(is_there, "the token is gone");
    mutex.unlock();
  }
};

Case ConditionMissesNoChange() {
  auto token = make_shared<Token>();
  return {.threads = {[token] { token->PutDown(); },
                      [token] { Check(token->TakeBefore({}), "a wait without a deadline failed"); }}};
}

Case ConditionForThree() {
  auto token = make_shared<Token>();
  auto pass_on = [token] {
    Check(token->TakeBefore({}), "a wait without a deadline failed");
    token->PutDown();
  };
  return {.threads = {[token] { token->PutDown(); }, pass_on, pass_on},
          .finish = [token] { token->CheckThere(); }};
}

Case ConditionLosesNoSignalToATimeout() {
  auto token = make_shared<Token>();
  auto pass_on = [token](Deadline deadline) {
    if (token->TakeBefore(deadline)) {
      token->PutDown();
    } else {
      Check(!deadline.is_never(), "a wait without a deadline failed");
    }
  };
  return {.threads = {[token] { token->PutDown(); }, [pass_on] { pass_on(kSoon); },
                      [pass_on] { pass_on({}); }},
          .finish = [token] { token->CheckThere(); }};
}

Case ConditionSignalsAll() {
  struct Gate {
    fiber::Mutex mutex;
    fiber::Condition opened;
    bool is_open = false;
  };
  auto gate = make_shared<Gate>();
  auto pass = [gate]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    gate->mutex.lock();
    Check(gate->opened.Wait(gate->mutex, [&] { return gate->is_open; }).ok(),
          "a wait without a deadline failed");
    gate->mutex.unlock();
  };
  return {.threads = {[gate]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        gate->mutex.lock();
                        gate->is_open = true;
                        gate->opened.SignalAll();
                        gate->mutex.unlock();
                      },
                      pass, pass}};
}

Case ConditionIsDestroyedAsSoonAsNobodyWaits() {
  auto mutex = make_shared<fiber::Mutex>();
  auto condition = make_shared<Mortal<fiber::Condition>>();
  auto is_waiting = make_shared<bool>(false);
  return {.threads = {[=]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        Await(is_waiting.get(), [is_waiting] { return *is_waiting; });
                        mutex->lock();
                        mutex->unlock();
                        (*condition)->Signal();
                      },
                      [=]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
                        mutex->lock();
                        Touch(is_waiting.get());
                        *is_waiting = true;
                        Check((*condition)->Wait(*mutex).ok(), "a wait without a deadline failed");
                        mutex->unlock();
                        Destroy(**condition);
                      }}};
}

// Barrier.
// -------------------------------------------------------------------------------------------------

struct Phases {
  explicit Phases(int parties) : barrier(parties) {}
  fiber::Barrier barrier;
  int arrived = 0;
  int passed = 0;
  // Of the parties' first phase.
  void Pass(int parties, bool is_hasty = false) {
    Touch(&arrived);
    ++arrived;
    if (is_hasty) {
      if (barrier.ArriveAndWait(kSoon).ok()) return CheckPassed(parties);
      Touch(&arrived);
      Check(passed == 0, "it failed for one, and passed for another");
    }
    Check(barrier.ArriveAndWait().ok(), "a wait without a deadline failed");
    CheckPassed(parties);
  }
  void CheckPassed(int parties) {
    Touch(&arrived);
    Check(arrived >= parties, "one has passed before all have come");
    ++passed;
  }
};

Case BarrierForTwoTwice() {
  auto phases = make_shared<Phases>(2);
  auto pass = [phases] {
    phases->Pass(2);
    phases->Pass(4);
  };
  return {.threads = {pass, pass}};
}

Case BarrierForThree() {
  auto phases = make_shared<Phases>(3);
  auto pass = [phases] { phases->Pass(3); };
  return {.threads = {pass, pass, pass}};
}

Case BarrierWithATimeout() {
  auto phases = make_shared<Phases>(2);
  return {.threads = {[phases] { phases->Pass(2); }, [phases] { phases->Pass(2, true); }}};
}

Case BarrierForThreeWithTimeouts() {
  auto phases = make_shared<Phases>(3);
  return {.threads = {[phases] { phases->Pass(3); }, [phases] { phases->Pass(3, true); },
                      [phases] { phases->Pass(3, true); }}};
}

Case BarrierIsDestroyedAsSoonAsOneHasPassed() {
  auto barrier = make_shared<Mortal<fiber::Barrier>>(2);
  auto pass = [barrier] {
    Check((*barrier)->ArriveAndWait().ok(), "a wait without a deadline failed");
  };
  return {.threads = {pass, [barrier, pass] {
                        pass();
                        Destroy(**barrier);
                      }}};
}

// Once.
// -------------------------------------------------------------------------------------------------

Case OnceForThree() {
  auto once = make_shared<fiber::Once>();
  auto calls = make_shared<int>(0);
  auto use = [once, calls] {
    once->Do([calls] {
      Touch(calls.get());
      ++*calls;
    });
    Touch(calls.get());
    Check(*calls == 1, "it was not done, or done twice");
  };
  return {.threads = {use, use, use}};
}

Case OnceIsDestroyedAsSoonAsItIsDone() {
  auto once = make_shared<Mortal<fiber::Once>>();
  auto begun = make_shared<bool>(false);
  return {.threads = {[once, begun] {
                        (*once)->Do([begun] {
                          Touch(begun.get());
                          *begun = true;
                        });
                      },
                      [once, begun] {
                        Await(begun.get(), [begun] { return *begun; });
                        (*once)->Do([] { Check(false, "it was done twice"); });
                        Destroy(**once);
                      }}};
}

}  // namespace

std::span<const NamedCase> Cases() {
  static constexpr NamedCase kCases[] = {
      {"SharedMutexForTwo", SharedMutexForTwo},
      {"SharedMutexForTwoTwice", SharedMutexForTwoTwice, 3},
      {"SharedMutexForThree", SharedMutexForThree, 3},
      {"SharedMutexForTwoWriters", SharedMutexForTwoWriters, 3},
      {"SharedMutexWithTimeouts", SharedMutexWithTimeouts, 2},
      {"SharedMutexWithTries", SharedMutexWithTries, 3},
      {"SharedMutexWriterGivesUp", SharedMutexWriterGivesUp, 3},
      {"SharedMutexIsDestroyedAfterItsLastReader", SharedMutexIsDestroyedAfterItsLastReader},
      {"SharedMutexIsDestroyedAfterItsLastWriter", SharedMutexIsDestroyedAfterItsLastWriter},
      {"ConditionMissesNoChange", ConditionMissesNoChange},
      {"ConditionForThree", ConditionForThree, 2},
      {"ConditionLosesNoSignalToATimeout", ConditionLosesNoSignalToATimeout, 2},
      {"ConditionSignalsAll", ConditionSignalsAll, 2},
      {"ConditionIsDestroyedAsSoonAsNobodyWaits", ConditionIsDestroyedAsSoonAsNobodyWaits},
      {"BarrierForTwoTwice", BarrierForTwoTwice},
      {"BarrierForThree", BarrierForThree, 3},
      {"BarrierWithATimeout", BarrierWithATimeout},
      {"BarrierForThreeWithTimeouts", BarrierForThreeWithTimeouts, 2},
      {"BarrierIsDestroyedAsSoonAsOneHasPassed", BarrierIsDestroyedAsSoonAsOneHasPassed},
      {"OnceForThree", OnceForThree, 3},
      {"OnceIsDestroyedAsSoonAsItIsDone", OnceIsDestroyedAsSoonAsItIsDone},
  };
  return kCases;
}

}  // namespace model
