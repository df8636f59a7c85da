package guests

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/memory"
)

const hugePool = "/proc/sys/vm/nr_hugepages"

// reserveHuge gives the host's pool of 2 MiB pages n pages more until the test
// ends.
func reserveHuge(t *testing.T, n int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the pool of huge pages: needs root")
	}
	get := func() int {
		b, err := os.ReadFile(hugePool)
		require.NoError(t, err)
		have, err := strconv.Atoi(strings.TrimSpace(string(b)))
		require.NoError(t, err)
		return have
	}
	set := func(n int) { require.NoError(t, os.WriteFile(hugePool, []byte(strconv.Itoa(n)), 0)) }
	before := get()
	t.Cleanup(func() {
		set(before)
		assert.Equal(t, before, get(), "pages in the pool, as before the test")
	})
	set(before + n)
	require.Equal(t, before+n, get(), "the host has no %d contiguous pages of 2 MiB", n)
}

// hugeFree is how many pages of the pool hold nothing.
func hugeFree(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	require.NoError(t, err)
	return number(t, `(?m)^HugePages_Free:\s+(\d+)$`, string(b))
}

// TestReservedHugePages: --huge-pages reserved puts a guest's memory into pages
// of the host's hugetlb pool, and gives them back.
func TestReservedHugePages(t *testing.T) {
	const pages = 128 >> 1
	reserveHuge(t, pages)
	free := hugeFree(t)
	for _, backing := range []memory.Backing{memory.Anonymous, memory.Memfd} {
		t.Run(backing.String(), func(t *testing.T) {
			r := start(t, machine(t, "", "-i", initWith(t, idleInit), "--huge-pages", "reserved", "--memory-backing", backing.String())...)
			idle := r.out.until("IDLE")
			used, resident := free-hugeFree(t), hugetlbOf(t, r.cmd.Process.Pid)
			require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
			res := r.wait()
			require.True(t, idle, "console: %s\nstderr: %s", res.stdout, res.stderr)
			assert.Equal(t, 143, res.code, res.stderr)
			t.Logf("%d of %d huge pages hold the guest", used, pages)
			assert.Equal(t, resident, used*2<<10, "kB in huge pages: of the process, and out of the pool")
			assert.Greater(t, used, 8, "a kernel alone fills more")
			assert.Equal(t, free, hugeFree(t), "free pages after the end")
		})
	}
}

// hugetlbOf is how much of a process's memory is in pages of the hugetlb pool,
// in kB.
func hugetlbOf(t *testing.T, pid int) (kB int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	require.NoError(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var n int
		for _, field := range []string{"Private_Hugetlb:", "Shared_Hugetlb:"} {
			if _, err := fmt.Sscanf(lines.Text(), field+" %d kB", &n); err == nil {
				kB += n
			}
		}
	}
	return kB
}
