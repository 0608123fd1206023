// SPDX-License-Identifier: Apache-2.0
#ifndef WEFT_TESTS_LEAKS_CENSUS_H_
#define WEFT_TESTS_LEAKS_CENSUS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tests {

// Census is what the process has in use at a moment, thing by thing. Two of them show what was left behind in between.
//
// | what        | counted                                                       | not counted                              |
// |-------------|---------------------------------------------------------------|------------------------------------------|
// | descriptors | all that are open                                             |                                          |
// | threads     | all of the process                                            | those that are exiting: joined already   |
// | records     | fibers that are not free: up to the end of who may join them  | records in free lists                    |
// | stacks      | carved and not in the depot                                   | free ones; a worker's cache is given to  |
// |             |                                                               | the depot when the worker ends           |
// | mappings    | made by mmap() and not unmapped: ours and the test's          | the C library's own (heap, threads);     |
// |             |                                                               | slabs and arenas, which are kept         |
//
// Mappings are not counted under sanitizers, which see to mmap() themselves.
class Census {
 public:
  static Census Take();

  // A line for each thing that was not there before, and for each descriptor that has gone. Empty: there is none. Up to
  // `abandoned_fibers` records and as many stacks are not mentioned.
  std::string ChangesSince(const Census& before, size_t abandoned_fibers = 0) const;

 private:
  enum class Kind { kDescriptor, kThread, kRecord, kStack, kMapping, kOther };
  struct Thing {
    Kind kind;
    uint64_t id;  // tells it from others of its kind
    std::string text;
  };

  void AddDescriptors();
  void AddThreads();
  void AddRecords();
  void AddStacks();
  void AddMappings();
  void AddOthers();
  bool Has(const Thing& thing) const;

  std::vector<Thing> things_;
};

// What a layer above //fiber adds to every census.
struct CensusEntry {
  const char* what;
  size_t (*count)();                                    // how many are in use
  bool (*keeps)(const void* begin, const void* end);    // whether a mapping is kept for more of them
};
// Returns true, for initialisers.
bool AddToCensus(CensusEntry entry);

}  // namespace tests

#endif  // WEFT_TESTS_LEAKS_CENSUS_H_
