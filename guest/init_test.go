package guest

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestNotInit checks the one thing that must never go wrong on a host.
func TestNotInit(t *testing.T) {
	assert.False(t, IsInit())
	assert.Equal(t, 1, Main())
}

func TestStoreMark(t *testing.T) {
	page := []byte{0xaa, 0xbb, 0xcc}
	storeMark(page)
	assert.Equal(t, []byte{123, 0xbb, 0xcc}, page, "one byte and no more")
}

func TestConsole(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	c := console(w.Fd())
	c.print("report\n")
	c.drain()
	c.printFailures([]mount{{kind: "proc", target: "/proc"}, {kind: "sysfs", target: "/sys", err: unix.EBUSY}},
		words{unknown: []string{"vole.x"}})
	require.NoError(t, w.Close())
	buf := make([]byte, 1000)
	n, err := r.Read(buf)
	require.NoError(t, err)
	assert.Equal(t, "report\nvole guest: sysfs on /sys: device or resource busy\nvole guest: vole.x is not understood\n", string(buf[:n]))
}

func TestMountTable(t *testing.T) {
	var targets []string
	for _, m := range mountTable() {
		targets = append(targets, m.kind+" "+m.target)
		assert.NotZero(t, m.flags&unix.MS_NOSUID, m.target)
	}
	assert.Equal(t, []string{"proc /proc", "sysfs /sys", "devtmpfs /dev", "devpts /dev/pts", "tmpfs /run", "tmpfs /tmp"}, targets)
}

func TestNextSaysEveryAction(t *testing.T) {
	said := make(map[string]bool)
	for _, word := range []string{"poweroff", "reboot", "halt", "crash", "hang", "triple", "exit:3"} {
		w := parseWords("vole.action=" + word)
		assert.Empty(t, w.unknown, word)
		said[w.next()] = true
	}
	assert.Len(t, said, 7)
}

func TestReap(t *testing.T) {
	reap() // no child: returns
}
