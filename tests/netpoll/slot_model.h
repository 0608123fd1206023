// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_NETPOLL_SLOT_MODEL_H_
#define WEFT_TESTS_NETPOLL_SLOT_MODEL_H_

#include <memory>

// The very code of a poll slot, compiled so that each access to an atomic is a point where another fiber of a simulation
// may come first. Sequentially consistent interleavings only.
//
// It is compiled apart (slot_model.cc), under another namespace, and shows itself through this face.
namespace slot_model {

// What the model needs from the simulation.
void SchedulePoint();
void Park();    // until the next Unpark, which may have come already
void Unpark();

enum class Outcome { kReady, kLookAgain, kClosed, kDeadline, kNotLinked };

// A socket that brings an edge when something comes into it while it is empty; one reader, who waits through one wait
// block, for the socket and for something else.
class Socket {
 public:
  Socket();
  ~Socket();

  // Pollers, closers, timers.
  void Send();              // one token; with an edge if there was none
  void MoveDeadline();      // whoever waits looks again
  void Close();             // stores that it is closed, then claims whoever waits
  void ExpireTimer();       // claims whatever wait the reader is in, as its timer would
  void MarkOther();         // news of something else

  // The reader.
  int Receive();            // all tokens, after what comes directly before a system call
  bool is_ready() const;    // there is news
  Outcome Wait();
  Outcome WaitForOther();   // through the same block, in another slot
  bool is_closed() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace slot_model

#endif  // WEFT_TESTS_NETPOLL_SLOT_MODEL_H_
