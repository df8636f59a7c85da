package vmm

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// belongings is what a process has that a machine could leave behind.
type belongings struct {
	goroutines, threads, fds, mappings int
}

func owned(t *testing.T) belongings {
	t.Helper()
	count := func(dir string) int {
		e, err := os.ReadDir(dir)
		require.NoError(t, err)
		return len(e)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	b := belongings{goroutines: runtime.NumGoroutine(), threads: count("/proc/self/task"), fds: count("/proc/self/fd")}
	for line := range strings.Lines(string(maps)) {
		flags, ok := strings.CutPrefix(line, "VmFlags:")
		// Guest RAM is left out of core dumps; it has a name only where the kernel
		// names anonymous memory.
		if ok && slices.Contains(strings.Fields(flags), "dd") || !ok && strings.Contains(line, "kvm") {
			b.mappings++
		}
	}
	return b
}

// bootOnce runs a payload to its end and closes its machine.
func bootOnce(t *testing.T, cpus int) {
	t.Helper()
	var out bytes.Buffer
	m, err := New(Config{KernelImage: payload(say("ok"), debugExit(7), spin), Memory: 4 << 20, CPUs: cpus, ConsoleOut: &out})
	require.NoError(t, err)
	require.NoError(t, m.Start())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	exit, err := m.Wait(ctx)
	require.NoError(t, err)
	require.Equal(t, Exit{Reason: DebugExit, Code: 7}, exit)
	require.NoError(t, m.Close())
	require.Equal(t, "ok", out.String())
}

// requireNothingLeft waits for the threads of ended vCPUs to be gone, which
// they are a moment after their goroutines, and compares. Less than before is
// what an earlier test's last goroutine makes.
func requireNothingLeft(t *testing.T, before belongings, spareThreads int) {
	t.Helper()
	most := before
	most.threads += spareThreads
	now := owned(t)
	for deadline := time.Now().Add(10 * time.Second); !now.within(most) && time.Now().Before(deadline); runtime.Gosched() {
		now = owned(t)
	}
	assert.True(t, now.within(most), "more is left than %+v", most)
	t.Logf("before %+v, after %+v", before, now)
}

func (b belongings) within(most belongings) bool {
	return b.goroutines <= most.goroutines && b.threads <= most.threads && b.fds <= most.fds && b.mappings <= most.mappings
}

func TestMachinesLeaveNothingBehind(t *testing.T) {
	needKVM(t)
	n := 200
	switch {
	case testing.Short():
		n = 20
	case os.Getenv("VOLE_SUITE") == "soak":
		n = 5000
	}
	bootOnce(t, 1) // what the runtime and the test need once
	before := owned(t)
	for i := range n {
		bootOnce(t, 1+i%3)
	}
	// The runtime keeps a few idle threads of its own.
	requireNothingLeft(t, before, 4)
}

func TestManyMachinesAtOnce(t *testing.T) {
	needKVM(t)
	const machines = 32
	batch := func() {
		var wg sync.WaitGroup
		for i := range machines {
			wg.Go(func() { bootOnce(t, 1+i%2) })
		}
		wg.Wait()
	}
	batch() // the runtime keeps about a thread for each
	before := owned(t)
	batch()
	requireNothingLeft(t, before, machines*3/4)
}

func TestFailedNewLeavesNothingBehind(t *testing.T) {
	needKVM(t)
	before := owned(t)
	for _, cfg := range []Config{
		{Kernel: "/nonexistent"},
		{KernelImage: bytes.NewReader([]byte("not a kernel"))},
		{KernelImage: payload(spin), CPUs: 10_000},
		{KernelImage: payload(spin), Memory: 1},
		{KernelImage: payload(spin), Cmdline: strings.Repeat("x", 1<<20)},
		{KernelImage: payload(spin), Initrd: "/nonexistent"},
	} {
		_, err := New(cfg)
		require.ErrorIs(t, err, ErrConfig)
		require.ErrorIs(t, cfg.Validate(), ErrConfig)
	}
	requireNothingLeft(t, before, 4)
}
