package virtiotest

import (
	"fmt"
	"os"
	"runtime"
	"testing"
)

// What may come and go between two looks of a Growth, in a process that does
// nothing else: what ends is not gone at once, and the fuzzing engine has data of
// its own.
const (
	growthEvery      = 2000
	growthGoroutines = 50
	growthFiles      = 30
	growthHeap       = 32 << 20 // bytes
)

// Growth finds what a fuzz target's inputs leave behind: every few thousand it
// compares the process with what it was like the first time. The zero value is
// ready; one goroutine uses it.
type Growth struct {
	calls int
	first *size
}

// size is what a process has.
type size struct {
	goroutines, files int
	heap              uint64
}

// Check is called once for each input. It fails the test if the process has
// more goroutines, open files or memory than it may.
func (g *Growth) Check(tb testing.TB) {
	tb.Helper()
	if g.calls++; g.calls%growthEvery != 0 {
		return
	}
	if err := g.look(); err != nil {
		tb.Fatal(err)
	}
}

func (g *Growth) look() error {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("virtiotest: open files can't be counted: %w", err)
	}
	// Twice: what pools hold, and what is made while the first collection marks,
	// outlives one.
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	now := size{runtime.NumGoroutine(), len(files), m.HeapAlloc}
	if g.first == nil {
		g.first = &now
		return nil
	}
	for _, c := range []struct {
		what            string
		was, now, slack uint64
	}{
		{"goroutines", uint64(g.first.goroutines), uint64(now.goroutines), growthGoroutines},
		{"open files", uint64(g.first.files), uint64(now.files), growthFiles},
		{"bytes on the heap", g.first.heap, now.heap, growthHeap},
	} {
		if c.now > c.was+c.slack {
			return fmt.Errorf("virtiotest: after %d inputs there are %d %s, and there were %d", g.calls, c.now, c.what, c.was)
		}
	}
	return nil
}
