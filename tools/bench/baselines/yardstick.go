// SPDX-License-Identifier: Apache-2.0

// The workloads of tools/bench/yardstick.cc in Go, as one writes them there.
//
//	go build -o yardstick_go yardstick.go
//	yardstick_go WORKLOAD WORKERS N
//
// WORKERS is GOMAXPROCS.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "yardstick_go: "+format+"\n", arguments...)
	os.Exit(1)
}

// usage returns the process's CPU time and the most memory it ever had resident.
func usage() (cpu time.Duration, peakKB int64) {
	var rusage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &rusage); err != nil {
		fail("getrusage: %v", err)
	}
	return time.Duration(rusage.Utime.Nano() + rusage.Stime.Nano()), rusage.Maxrss
}

func residentBytes() int64 {
	file, err := os.Open("/proc/self/statm")
	if err != nil {
		fail("%v", err)
	}
	defer file.Close()
	var size, resident int64
	if _, err := fmt.Fscan(bufio.NewReader(file), &size, &resident); err != nil {
		fail("statm: %v", err)
	}
	return resident * int64(os.Getpagesize())
}

// together runs body(0) to body(n-1), a goroutine each, and waits for all.
func together(n int, body func(i int)) {
	var running sync.WaitGroup
	running.Add(n)
	for i := 0; i < n; i++ {
		go func(i int) {
			body(i)
			running.Done()
		}(i)
	}
	running.Wait()
}

// Go has no join: a wait group for one goroutine is as near as one gets.
func spawnJoin(n int) {
	var child sync.WaitGroup
	for i := 0; i < n; i++ {
		child.Add(1)
		go child.Done()
		child.Wait()
	}
}

func spawnMany(n int) {
	var children sync.WaitGroup
	children.Add(n)
	for i := 0; i < n; i++ {
		go children.Done()
	}
	children.Wait()
}

func yield(goroutines int) func(n int) {
	return func(n int) {
		together(goroutines, func(int) {
			for i := 0; i < n/goroutines; i++ {
				runtime.Gosched()
			}
		})
	}
}

func pingpong(n int) {
	there, back := make(chan int), make(chan int)
	together(2, func(side int) {
		for i := 0; i < n; i++ {
			if side == 0 {
				there <- i
				if token := <-back; token != i {
					fail("pingpong: got %d, not %d", token, i)
				}
			} else {
				back <- <-there
			}
		}
	})
}

// pipe sends numbers through one channel of capacity 128.
func pipe(senders, receivers int) func(n int) {
	return func(n int) {
		items := make(chan int, 128)
		var sum atomic.Int64
		together(senders+receivers, func(i int) {
			if i < senders {
				for item := 0; item < n/senders; item++ {
					items <- item
				}
				return
			}
			mine := 0
			for k := 0; k < n/receivers; k++ {
				mine += <-items
			}
			sum.Add(int64(mine))
		})
		share := int64(n / senders)
		if want := int64(senders) * share * (share - 1) / 2; sum.Load() != want {
			fail("the sum is %d, not %d", sum.Load(), want)
		}
	}
}

func lock(n int) {
	const goroutines = 100
	var mutex sync.Mutex
	counter := 0
	together(goroutines, func(int) {
		for i := 0; i < n/goroutines; i++ {
			mutex.Lock()
			counter++
			mutex.Unlock()
		}
	})
	if counter != n/goroutines*goroutines {
		fail("mutex: the counter is %d", counter)
	}
}

func sumOfLeaves(first, leaves int, sum chan<- int) {
	if leaves == 1 {
		sum <- first
		return
	}
	children := make(chan int, 10)
	share := leaves / 10
	for i := 0; i < 10; i++ {
		go sumOfLeaves(first+i*share, share, children)
	}
	total := 0
	for i := 0; i < 10; i++ {
		total += <-children
	}
	sum <- total
}

func skynet(n int) {
	sum := make(chan int, 1)
	go sumOfLeaves(0, n, sum)
	if got := <-sum; got != n*(n-1)/2 {
		fail("skynet: the sum is %d (N must be a power of ten)", got)
	}
}

func sleep(n int) {
	together(n, func(i int) {
		time.Sleep(time.Duration(1+i*7919%1000) * time.Millisecond)
	})
}

// park does not count looking at the memory.
func park(n int) (wall time.Duration, extra string) {
	runtime.GC()
	before := residentBytes()
	release := make(chan struct{})
	var arrived atomic.Int64
	var parked sync.WaitGroup
	parked.Add(n)
	start := time.Now()
	for i := 0; i < n; i++ {
		go func() {
			arrived.Add(1)
			<-release
			parked.Done()
		}()
	}
	for arrived.Load() != int64(n) {
		time.Sleep(50 * time.Microsecond)
	}
	wall = time.Since(start)
	time.Sleep(20 * time.Millisecond) // the last ones get to the channel
	extra = fmt.Sprintf("rss_per_fiber_bytes=%d,", (residentBytes()-before)/int64(n))
	start = time.Now()
	close(release)
	parked.Wait()
	return wall + time.Since(start), extra
}

var sink atomic.Uint64

// spin makes no call that the scheduler could use.
func spin(until time.Time, x uint64) {
	for time.Now().Before(until) {
		for i := 0; i < 2000000; i++ {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
	}
	sink.Add(x)
}

func hog(workers int) (extra string) {
	var gaps []float64
	started := make(chan struct{})
	var running sync.WaitGroup
	running.Add(1 + workers)
	go func() {
		close(started)
		last := time.Now()
		for end := last.Add(time.Second); last.Before(end); {
			time.Sleep(time.Millisecond)
			now := time.Now()
			gaps = append(gaps, float64(now.Sub(last))/1e6)
			last = now
		}
		running.Done()
	}()
	<-started
	for i := 0; i < workers; i++ {
		go func(i int) {
			spin(time.Now().Add(time.Second), uint64(i)+1)
			running.Done()
		}(i)
	}
	running.Wait()
	sort.Float64s(gaps)
	return fmt.Sprintf("max_gap_ms=%.3f,p99_gap_ms=%.3f,wakeups=%d,", gaps[len(gaps)-1],
		gaps[len(gaps)*99/100], len(gaps))
}

func serve(connection net.Conn) {
	defer connection.Close()
	buffer := make([]byte, 4096)
	for {
		n, err := connection.Read(buffer)
		if err != nil {
			return
		}
		if _, err := connection.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func echo(port int) {
	listener, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		fail("%v", err)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, "listening on", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "yardstick_go: accept:", err)
			time.Sleep(time.Millisecond)
			continue
		}
		go serve(connection)
	}
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: yardstick_go WORKLOAD WORKERS N | yardstick_go echo WORKERS PORT")
		os.Exit(2)
	}
	workload := os.Args[1]
	workers, workersErr := strconv.Atoi(os.Args[2])
	n, nErr := strconv.Atoi(os.Args[3])
	if workersErr != nil || nErr != nil || workers < 1 || n < 0 || (n == 0 && workload != "echo") {
		fmt.Fprintln(os.Stderr, "yardstick_go: WORKERS and N are positive numbers")
		os.Exit(2)
	}
	runtime.GOMAXPROCS(workers)

	warmUp, operations := n/20, n
	var extra string
	var loop func(n int)
	switch workload {
	case "echo":
		echo(n)
	case "spawn_join":
		loop = spawnJoin
	case "spawn_many":
		loop = spawnMany
	case "yield":
		loop = yield(2)
	case "yield1k":
		loop = yield(1000)
		if warmUp < 1000 {
			warmUp = 1000
		}
	case "pingpong":
		loop = pingpong
	case "chan":
		loop = pipe(1, 1)
	case "mpmc":
		loop = pipe(4, 4)
		operations = n / 4 * 4
	case "mutex":
		loop = lock
	case "skynet":
		loop = skynet
		for warmUp = 1; warmUp*10 <= n/20; {
			warmUp *= 10
		}
		extra = "via=channels,"
	case "sleep":
		loop = sleep
		warmUp = 0
	case "park", "hog":
		warmUp = 0
	default:
		fmt.Printf("go %s %d %d unsupported=unknown_workload\n", workload, workers, n)
		os.Exit(3)
	}

	if warmUp > 0 {
		loop(warmUp)
	}
	cpuBefore, _ := usage()
	start := time.Now()
	var wall time.Duration
	switch workload {
	case "park":
		wall, extra = park(n)
	case "hog":
		extra = hog(workers)
		operations = 1
		wall = time.Since(start)
	default:
		loop(n)
		wall = time.Since(start)
	}
	cpuAfter, peakKB := usage()
	fmt.Printf("go %s %d %d wall_ns=%d ns_per_op=%.2f cpu_ms=%.2f rss_peak_kb=%d extra=%s%s\n", workload, workers, n,
		wall.Nanoseconds(), float64(wall.Nanoseconds())/float64(operations),
		float64((cpuAfter-cpuBefore).Nanoseconds())/1e6, peakKB, extra, strings.ReplaceAll(runtime.Version(), " ", "_"))
}
