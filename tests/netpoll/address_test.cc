// SPDX-License-Identifier: Apache-2.0
#include "netpoll/address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <iostream>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace netpoll {
namespace {

static_assert(std::is_trivially_copyable_v<Address>);

std::string Reread(std::string_view text) {
  absl::StatusOr<Address> address = Address::Parse(text);
  return address.ok() ? address->ToString() : address.status().ToString();
}

TEST(AddressTest, ExampleInTheHeader) {
  const auto run = []() -> absl::Status {
    absl::StatusOr<netpoll::Address> address = netpoll::Address::Parse("127.0.0.1:7000");
    if (!address.ok()) return address.status();
    netpoll::Address neighbour = address->WithPort(7001);
    std::cerr << "forwarding " << *address << " to " << neighbour << "\n";
    return absl::OkStatus();
  };
  testing::internal::CaptureStderr();
  EXPECT_TRUE(run().ok());
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "forwarding 127.0.0.1:7000 to 127.0.0.1:7001\n");
}

TEST(AddressTest, WhatIsParsedIsPrintedAlike) {
  for (const char* text : {"127.0.0.1:80", "0.0.0.0:0", "255.255.255.255:65535", "1.20.255.0:1",
                           "[::1]:80", "[::]:0", "[2001:db8::1]:443", "[::ffff:1.2.3.4]:80",
                           "[fe80::1%1]:80", "[ff02::1%4294967295]:5353"}) {
    EXPECT_EQ(Reread(text), text);
  }
}

TEST(AddressTest, OtherSpellingsArePrintedInTheUsualForm) {
  EXPECT_EQ(Reread(":8080"), "0.0.0.0:8080");
  EXPECT_EQ(Reread(":0"), "0.0.0.0:0");
  EXPECT_EQ(Reread("[0:0:0:0:0:0:0:1]:80"), "[::1]:80");
  EXPECT_EQ(Reread("[2001:DB8:0:0::0001]:80"), "[2001:db8::1]:80");
  EXPECT_EQ(Reread("[::FFFF:102:304]:80"), "[::ffff:1.2.3.4]:80");
}

TEST(AddressTest, HoldsWhatTheSystemTakes) {
  const Address v4 = Address::Parse("1.2.3.4:80").value();
  EXPECT_EQ(v4.family(), AF_INET);
  EXPECT_EQ(v4.port(), 80);
  EXPECT_EQ(v4.size(), sizeof(sockaddr_in));
  sockaddr_in name;
  memcpy(&name, v4.data(), v4.size());
  EXPECT_EQ(name.sin_family, AF_INET);
  EXPECT_EQ(name.sin_port, htons(80));
  EXPECT_EQ(name.sin_addr.s_addr, htonl(0x01020304));

  const Address v6 = Address::Parse("[fe80::2%3]:443").value();
  EXPECT_EQ(v6.family(), AF_INET6);
  EXPECT_EQ(v6.port(), 443);
  EXPECT_EQ(v6.size(), sizeof(sockaddr_in6));
  sockaddr_in6 name6;
  memcpy(&name6, v6.data(), v6.size());
  EXPECT_EQ(name6.sin6_port, htons(443));
  EXPECT_EQ(name6.sin6_scope_id, 3u);
  EXPECT_EQ(name6.sin6_addr.s6_addr[0], 0xfe);
  EXPECT_EQ(name6.sin6_addr.s6_addr[15], 2);
}

TEST(AddressTest, ASocketIsBoundAndFoundThere) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_GE(fd, 0);
  const Address any_port = Address::Loopback(0);
  ASSERT_EQ(bind(fd, any_port.data(), any_port.size()), 0) << strerror(errno);
  sockaddr_storage storage;
  socklen_t size = sizeof(storage);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &size), 0);
  const absl::StatusOr<Address> bound =
      Address::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), size);
  ASSERT_TRUE(bound.ok()) << bound.status();
  EXPECT_NE(bound->port(), 0);
  EXPECT_EQ(*bound, Address::Loopback(bound->port()));
  close(fd);
}

TEST(AddressTest, AScopeIsTheNameOrTheNumberOfAnInterface) {
  const unsigned loopback = if_nametoindex("lo");
  if (loopback == 0) GTEST_SKIP() << "no loopback interface";
  const Address by_name = Address::Parse("[fe80::1%lo]:80").value();
  const Address by_number = Address::Parse("[fe80::1%" + std::to_string(loopback) + "]:80").value();
  EXPECT_EQ(by_name, by_number);
  EXPECT_NE(by_name, Address::Parse("[fe80::1]:80").value());
  EXPECT_TRUE(Address::Parse("[ff02::1%lo]:80").ok());
  EXPECT_TRUE(Address::Parse("[ff01::1%lo]:80").ok());
}

TEST(AddressTest, WithoutDescriptorsTheInterfaceCannotBeFoundByName) {
  if (if_nametoindex("lo") == 0) GTEST_SKIP() << "no loopback interface";
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status status = Address::Parse("[fe80::1%lo]:80").status();
  const absl::Status by_number = Address::Parse("[fe80::1%1]:80").status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_NE(status.message().find("RLIMIT_NOFILE"), std::string::npos) << status;
  EXPECT_TRUE(by_number.ok()) << by_number;
}

TEST(AddressTest, BadTextIsQuotedAndExplained) {
  struct Case {
    std::string text;
    const char* why;
  };
  for (const Case& c : std::vector<Case>{
           {"", "it is empty"},
           {"127.0.0.1", "there is no port"},
           {"127.0.0.1:", "the port is empty"},
           {":", "the port is empty"},
           {"127.0.0.1:65536", "the port is above 65535"},
           {"127.0.0.1:99999999999999999999", "the port is above 65535"},
           {"127.0.0.1:-1", "the port is not a decimal number"},
           {"127.0.0.1:+80", "the port is not a decimal number"},
           {"127.0.0.1:80x", "the port is not a decimal number"},
           {"127.0.0.1:http", "the port is not a decimal number"},
           {"127.0.0.1:0x50", "the port is not a decimal number"},
           {"127.0.0.1:80/", "the port is not a decimal number"},
           {"127.0.0.1:080", "the port has a leading zero"},
           {"127.0.0.1:00", "the port has a leading zero"},
           {"127.0.0.1:80:90", "there is more than one colon"},
           {"1.2.3:80", "an IPv4 address has four numbers"},
           {"1.2.3.4.5:80", "an IPv4 address has four numbers"},
           {"1..2.3:80", "an IPv4 address has four numbers"},
           {"1.2.3.:80", "an IPv4 address has four numbers"},
           {".:80", "an IPv4 address has four numbers"},
           {"16909060:80", "an IPv4 address has four numbers"},
           {"256.1.1.1:80", "a number is above 255"},
           {"1.1.1.99999999999999:80", "a number is above 255"},
           {"010.0.0.1:80", "a number with a leading zero may be meant as octal"},
           {"1.2.3.00:80", "a number with a leading zero may be meant as octal"},
           {"0x7f.0.0.1:80", "the host is not a numeric address"},
           {"-1.2.3.4:80", "the host is not a numeric address"},
           {"127.0.0.1%lo:80", "the host is not a numeric address"},
           {"localhost:80", "names looked up here"},
           {"example.com:443", "names looked up here"},
           {"http://1.2.3.4:80", "there is more than one colon"},
           {"*:80", "the host is not a numeric address"},
           {"::1:80", "an IPv6 address is written [::1]:80"},
           {"::1", "an IPv6 address is written [::1]:80"},
           {"fe80::1%lo:80", "an IPv6 address is written [::1]:80"},
           {"[::1", "the bracket is not closed"},
           {"[::1:80", "the bracket is not closed"},
           {"[", "the bracket is not closed"},
           {"[::1]", "there is no port"},
           {"[::1]80", "a colon and the port have to follow the bracket"},
           {"[::1]]:80", "a colon and the port have to follow the bracket"},
           {"[::1] :80", "a blank or a control character"},
           {"[::1]:", "the port is empty"},
           {"[]:80", "what is in brackets is not an IPv6 address"},
           {"[[::1]:80", "what is in brackets is not an IPv6 address"},
           {"[:::]:80", "what is in brackets is not an IPv6 address"},
           {"[1:2:3:4:5:6:7:8:9]:80", "what is in brackets is not an IPv6 address"},
           {"[12345::]:80", "what is in brackets is not an IPv6 address"},
           {"[::ffff:010.0.0.1]:80", "what is in brackets is not an IPv6 address"},
           {"[localhost]:80", "what is in brackets is not an IPv6 address"},
           {"[%lo]:80", "what is in brackets is not an IPv6 address"},
           {"[127.0.0.1]:80", "an IPv4 address takes no brackets"},
           {"::1]:80", "more than one colon"},
           {"1.2.3.4]:80", "the host is not a numeric address"},
           {"[fe80::1%]:80", "the scope is empty"},
           {"[fe80::1%0]:80", "the scope is not the number of an interface"},
           {"[fe80::1%4294967296]:80", "the scope is not the number of an interface"},
           {"[fe80::1%no-such-if0]:80", "this host has no network interface no-such-if0"},
           {"[fe80::1%an-interface-name-beyond-any-limit]:80",
            "this host has no network interface"},
           {"[fe80::1%lo%lo]:80", "this host has no network interface lo%lo"},
           {"[::1%lo]:80", "only link-local addresses take a scope"},
           {"[2001:db8::1%1]:80", "only link-local addresses take a scope"},
           {" 127.0.0.1:80", "a blank or a control character"},
           {"127.0.0.1:80 ", "a blank or a control character"},
           {"127.0.0.1: 80", "a blank or a control character"},
           {"127.0.0.1:80\n", "a blank or a control character"},
           {"127.0.0.1:8\t0", "a blank or a control character"},
           {"unix:/run/x.sock", "unix paths are not supported yet"},
       }) {
    const absl::Status status = Address::Parse(c.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    const std::string message(status.message());
    if (c.text.find_first_of("\n\t") == std::string::npos) {
      EXPECT_EQ(message.rfind("address \"" + c.text + "\": ", 0), 0u) << message;
    }
    EXPECT_NE(message.find(c.why), std::string::npos) << message;
  }
}

TEST(AddressTest, HostileTextIsQuotedSafely) {
  using std::string_literals::operator""s;
  const absl::Status nul = Address::Parse("127.0.0.1\0:80"s).status();
  EXPECT_EQ(nul.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(nul.message(),
            "address \"127.0.0.1\\x00:80\": there is a blank or a control character in it");
  EXPECT_FALSE(Address::Parse("127.0.0.1:80\0"s).ok());
  EXPECT_FALSE(Address::Parse("[fe80::1%lo\0]:80"s).ok());

  for (const char filler : {'1', ':', '[', 'a', '.', '\xff', '\0'}) {
    const absl::Status status = Address::Parse(std::string(1'000'000, filler)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_LT(status.message().size(), 1000u);
    EXPECT_NE(status.message().find("it is too long"), std::string::npos) << status;
  }
}

TEST(AddressTest, ReadsOnlyTheTextItIsGiven) {
  const std::string_view text = "127.0.0.1:8080";
  EXPECT_EQ(Address::Parse(text.substr(0, 12))->port(), 80);
  EXPECT_EQ(Address::Parse(std::string_view("x[::1]:443y").substr(1, 9))->ToString(), "[::1]:443");
}

TEST(AddressTest, EmptyIsTheAddressOfNoSocket) {
  const Address empty;
  EXPECT_EQ(empty.family(), AF_UNSPEC);
  EXPECT_EQ(empty.size(), 0u);
  EXPECT_EQ(empty.port(), 0);
  EXPECT_EQ(empty.ToString(), "(none)");
  EXPECT_EQ(empty, Address());
  EXPECT_EQ(empty.WithPort(80), empty);
  EXPECT_NE(empty, Address::Parse("0.0.0.0:0").value());
  EXPECT_FALSE(Address::Parse(empty.ToString()).ok());
}

TEST(AddressTest, WithPortChangesNothingElse) {
  for (const char* text : {"1.2.3.4:80", "[2001:db8::1]:80", "[fe80::1%7]:80"}) {
    const Address address = Address::Parse(text).value();
    EXPECT_EQ(address.WithPort(81).port(), 81);
    EXPECT_NE(address.WithPort(81), address);
    EXPECT_EQ(address.WithPort(81).WithPort(80), address);
  }
}

TEST(AddressTest, EqualityAndHashSeeEveryPart) {
  const std::vector<std::string> texts = {
      "1.2.3.4:80",     "1.2.3.4:81", "1.2.3.5:80",          "[::1]:80",
      "[::1]:81",       "[::2]:80",   "[fe80::1]:80",        "[fe80::1%1]:80",
      "[fe80::1%2]:80", "[::]:80",    "[::ffff:1.2.3.4]:80", "0.0.0.0:80"};
  absl::flat_hash_set<Address> addresses;
  for (const std::string& text : texts) addresses.insert(Address::Parse(text).value());
  EXPECT_EQ(addresses.size(), texts.size());
  for (const std::string& text : texts) {
    EXPECT_TRUE(addresses.contains(Address::Parse(text).value())) << text;
  }
  addresses.insert(Address::Parse(":80").value());
  EXPECT_EQ(addresses.size(), texts.size());
}

TEST(AddressTest, FromSockaddrTakesMeaningAndLeavesTheRest) {
  sockaddr_in v4 = {};
  memset(&v4, 0xff, sizeof(v4));
  v4.sin_family = AF_INET;
  v4.sin_port = htons(80);
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(Address::FromSockaddr(reinterpret_cast<sockaddr*>(&v4), sizeof(v4)).value(),
            Address::Loopback(80));

  sockaddr_in6 v6 = {};
  v6.sin6_family = AF_INET6;
  v6.sin6_port = htons(80);
  v6.sin6_addr = in6addr_loopback;
  v6.sin6_flowinfo = 12345;
  v6.sin6_scope_id = 7;
  EXPECT_EQ(Address::FromSockaddr(reinterpret_cast<sockaddr*>(&v6), sizeof(v6)).value(),
            Address::Parse("[::1]:80").value());
  ASSERT_EQ(inet_pton(AF_INET6, "fe80::1", &v6.sin6_addr), 1);
  EXPECT_EQ(Address::FromSockaddr(reinterpret_cast<sockaddr*>(&v6), sizeof(v6))->ToString(),
            "[fe80::1%7]:80");
}

TEST(AddressTest, FromSockaddrTakesUnalignedAndLongerNames) {
  alignas(16) char buffer[200] = {};
  const Address address = Address::Parse("[fe80::1%9]:80").value();
  memcpy(buffer + 1, address.data(), address.size());
  EXPECT_EQ(Address::FromSockaddr(reinterpret_cast<sockaddr*>(buffer + 1), 128).value(), address);
}

TEST(AddressTest, FromSockaddrRefusesWhatItDoesNotKnow) {
  sockaddr_storage storage = {};
  const auto* name = reinterpret_cast<sockaddr*>(&storage);
  const auto code = [&](const sockaddr* name, socklen_t size) {
    return Address::FromSockaddr(name, size).status().code();
  };
  EXPECT_EQ(code(nullptr, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(nullptr, 16), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(name, sizeof(storage)), absl::StatusCode::kInvalidArgument);
  for (const int family : {AF_UNIX, AF_NETLINK, AF_PACKET, 0xffff}) {
    storage.ss_family = static_cast<sa_family_t>(family);
    EXPECT_EQ(code(name, sizeof(storage)), absl::StatusCode::kInvalidArgument) << family;
  }
  storage.ss_family = AF_INET;
  for (socklen_t size = 0; size < sizeof(sockaddr_in); ++size) {
    EXPECT_EQ(code(name, size), absl::StatusCode::kInvalidArgument) << size;
  }
  EXPECT_EQ(code(name, sizeof(sockaddr_in)), absl::StatusCode::kOk);
  storage.ss_family = AF_INET6;
  for (socklen_t size = 0; size < sizeof(sockaddr_in6); ++size) {
    EXPECT_EQ(code(name, size), absl::StatusCode::kInvalidArgument) << size;
  }
}

Address RandomAddress(std::mt19937_64& random) {
  sockaddr_storage storage = {};
  auto* bytes = reinterpret_cast<unsigned char*>(&storage);
  // Runs of zeroes, since those are what the notation shortens.
  for (size_t i = 0; i < sizeof(storage); ++i) {
    bytes[i] = random() % 3 == 0 ? static_cast<unsigned char>(random()) : 0;
  }
  storage.ss_family = random() % 2 == 0 ? AF_INET : AF_INET6;
  if (storage.ss_family == AF_INET6 && random() % 3 == 0) {
    bytes[8] = random() % 2 == 0 ? 0xfe : 0xff;
    bytes[9] = bytes[8] == 0xfe ? 0x80 : 0x02;
  }
  return Address::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), sizeof(storage)).value();
}

TEST(AddressTest, EveryAddressIsReadBackFromItsText) {
  for (uint64_t seed = 1; seed <= 20'000; ++seed) {
    std::mt19937_64 random(seed);
    const Address address = RandomAddress(random);
    const absl::StatusOr<Address> reread = Address::Parse(address.ToString());
    ASSERT_TRUE(reread.ok()) << "seed " << seed << ": " << reread.status();
    ASSERT_EQ(*reread, address) << "seed " << seed;
  }
}

// Whatever is accepted has one meaning; whatever is not is refused by name.
TEST(AddressTest, MutatedTextNeverCrashesAndNeverChangesItsMeaning) {
  const std::string alphabet = "0123456789abcdefF:[].%lo-+ \t/x";
  int accepted = 0;
  for (uint64_t seed = 1; seed <= 50'000; ++seed) {
    std::mt19937_64 random(seed);
    std::string text = RandomAddress(random).ToString();
    for (uint64_t i = random() % 4; i > 0; --i) {
      const char c =
          random() % 16 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
      const size_t at = random() % (text.size() + 1);
      switch (random() % 3) {
        case 0:
          text.insert(text.begin() + static_cast<ptrdiff_t>(at), c);
          break;
        case 1:
          text.erase(at, 1);
          break;
        default:
          text.replace(at, 1, 1, c);
          break;
      }
    }
    const absl::StatusOr<Address> address = Address::Parse(text);
    if (!address.ok()) {
      ASSERT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << "seed " << seed;
      continue;
    }
    ++accepted;
    ASSERT_EQ(Address::Parse(address->ToString()).value(), *address) << "seed " << seed;
  }
  EXPECT_GT(accepted, 5000);
  EXPECT_LT(accepted, 45'000);
}

}  // namespace
}  // namespace netpoll
