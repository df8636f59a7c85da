package harness

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/guest/wire"
	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/rng"
	"github.com/vole-vmm/vole/vmm"
)

func TestOops(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		want bool
	}{
		"page fault":        {"[    4.012345] Oops: 0002 [#1] PREEMPT SMP NOPTI", true},
		"protection":        {"[   14.1] general protection fault, probably for non-canonical address 0xdead: 0000 [#12] SMP", true},
		"BUG":               {"[    1.000000] invalid opcode: 0000 [#1] PREEMPT SMP", true},
		"what comes before": {"[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000", false},
		"no stamp":          {"Oops: 0002 [#1] PREEMPT SMP", false},
		"no number":         {"[    1.0] what [#] is", false},
		"not closed":        {"[    1.0] what [#1 is", false},
		"a warning":         {"[    1.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1", false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, isOops([]byte(c.line))) })
	}
}

func TestConsole(t *testing.T) {
	var out bytes.Buffer
	var oopses []string
	alive := 0
	c := &console{out: &out, active: func() { alive++ }, oops: func(line string) { oopses = append(oopses, line) }}
	text := "hello\r\n[    1.5] Oops: 0002 [#1] SMP\r\n" + strings.Repeat("x", 2*maxLine) + "\n[    1.6] Oops: 0002 [#2] SMP\n"
	for _, b := range []byte(text) {
		n, err := c.Write([]byte{b})
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	assert.Equal(t, text, out.String())
	assert.Equal(t, []string{"Oops: 0002 [#1] SMP"}, oopses)
	assert.Equal(t, len(text), alive)
	assert.NoError(t, c.failed())
}

// TestOopsCause: an oops is told of with the line that says what was wrong, if that came
// just before it.
func TestOopsCause(t *testing.T) {
	const oops = "[    1.5] Oops: 0000 [#1] PREEMPT SMP\n"
	for name, c := range map[string]struct{ text, want string }{
		"page fault": {"[    1.4] BUG: unable to handle page fault for address: ffffffffc02737c0\n[    1.4] #PF: supervisor read access\n" + oops,
			"BUG: unable to handle page fault for address: ffffffffc02737c0: Oops: 0000 [#1] PREEMPT SMP"},
		"kernel BUG":  {"[    1.4] kernel BUG at mm/slub.c:1!\n" + oops, "kernel BUG at mm/slub.c:1!: Oops: 0000 [#1] PREEMPT SMP"},
		"long ago":    {"[    1.4] BUG: soft lockup\n" + strings.Repeat("[    1.4] x\n", causeLines) + oops, "Oops: 0000 [#1] PREEMPT SMP"},
		"the shell's": {"BUG: unable\n" + oops, "Oops: 0000 [#1] PREEMPT SMP"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			out := &console{active: func() {}, oops: func(line string) { got = line }}
			_, err := out.Write([]byte(strings.ReplaceAll(c.text, "\n", "\r\n")))
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

type full struct{ n int }

func (f *full) Write([]byte) (int, error) { f.n++; return 0, errors.New("full") }

func TestConsoleLogFails(t *testing.T) {
	log := &full{}
	c := &console{out: log, active: func() {}, oops: func(string) {}}
	for range 3 {
		_, err := c.Write([]byte("x\n"))
		require.NoError(t, err)
	}
	assert.Equal(t, 1, log.n)
	assert.EqualError(t, c.failed(), "full")
}

func TestScreen(t *testing.T) {
	var all []string
	for i := range 100 {
		all = append(all, fmt.Sprint("line ", i))
	}
	lines := strings.Split(string(screen([]byte(strings.Join(all, "\n")+"\n\r\n"))), "\n")
	require.Len(t, lines, screenLines)
	assert.Equal(t, "line 60", lines[0])
	assert.Equal(t, "line 99", lines[screenLines-1])
	assert.Equal(t, "ab", string(screen([]byte("ab"))))
	assert.Empty(t, screen(nil))
	long := append(bytes.Repeat([]byte{'x'}, 2*screenBytes), "\nend"...)
	assert.Equal(t, "end", string(screen(long)))
}

// TestDeathScreen: a trace that is longer than a screen is shown from its top.
func TestDeathScreen(t *testing.T) {
	const panics = "[    2.0] Kernel panic - not syncing: it says\n"
	trace := strings.Repeat("[    2.1]  ? x+0x1/0x2\n", 100)
	before := strings.Repeat("[    1.0] before\n", 30)
	const oops = "[    1.5] BUG: unable to handle page fault\n[    1.5] Oops: 0000 [#1] SMP\n"
	for name, c := range map[string]struct{ text, first, last string }{
		"nothing":           {before, "[    1.0] before", "[    1.0] before"},
		"short":             {before + panics + "end\n", "[    1.0] before", "end"},
		"long":              {before + panics + trace + "end\n", strings.TrimSpace(panics), "[    2.1]  ? x+0x1/0x2"},
		"oops and panic":    {before + oops + panics + trace, "[    1.5] BUG: unable to handle page fault", "[    2.1]  ? x+0x1/0x2"},
		"an oops long ago":  {oops + trace + panics + trace, strings.TrimSpace(panics), "[    2.1]  ? x+0x1/0x2"},
		"without an ending": {before + panics + trace + "x", strings.TrimSpace(panics), "[    2.1]  ? x+0x1/0x2"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := strings.Split(string(deathScreen([]byte(c.text))), "\n")
			assert.LessOrEqual(t, len(lines), screenLines)
			assert.Equal(t, c.first, lines[0])
			assert.Equal(t, c.last, lines[len(lines)-1])
		})
	}
	assert.Empty(t, deathScreen(nil))
	assert.LessOrEqual(t, len(deathScreen([]byte(panics+strings.Repeat("x", 3*screenBytes)))), screenBytes)
}

func TestAgentLine(t *testing.T) {
	assert.Equal(t, "no connection", agentLine([]byte("x\r\nvole guest: first\r\nvole guest: no connection\r\n[ 1.0] reboot: Power down\r\n")))
	assert.Empty(t, agentLine([]byte("it said vole guest: no\n")))
	assert.Empty(t, agentLine(nil))
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		exit vmm.Exit
		kind Kind
		text string
	}{
		{vmm.Exit{Reason: vmm.Panic}, Panic, "the guest's kernel panicked"},
		{vmm.Exit{Reason: vmm.Timeout}, Timeout, "the time for the guest has passed"},
		{vmm.Exit{Reason: vmm.HostError, Err: errors.New("x")}, Host, "the machine can't go on: x"},
		{vmm.Exit{Reason: vmm.TripleFault, Err: errors.New("x")}, Ended, "the guest can't go on: x"},
		{vmm.Exit{Reason: vmm.Poweroff}, Ended, "the guest powered off before the command ended"},
		{vmm.Exit{Reason: vmm.Reset}, Ended, "the guest reset before the command ended"},
		{vmm.Exit{Reason: vmm.DebugExit, Code: 3}, Ended, "the guest wrote 0x3 to the debug exit port before the command ended"},
	} {
		t.Run(c.exit.Reason.String(), func(t *testing.T) {
			f := failureOf(c.exit)
			assert.Equal(t, c.kind, f.Kind)
			assert.EqualError(t, f, c.text)
			if c.exit.Err != nil {
				assert.ErrorIs(t, f, c.exit.Err)
			}
		})
	}
	assert.Equal(t, "Attempted to kill init! exitcode=0x00000100",
		panicLine([]byte("x\n[ 1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n[ 1.1] CPU: 0\n")))
	assert.Empty(t, panicLine([]byte("fine")))
}

// TestOopsIsTheReason: what comes of a fatal oops is no failure of its own.
func TestOopsIsTheReason(t *testing.T) {
	oops := &Failure{Kind: Oops, Text: "the guest's kernel oopsed"}
	agent, err := net.Listen("unix", filepath.Join(t.TempDir(), "agent"))
	require.NoError(t, err)
	m := &Machine{guest: remote.New(agent, remote.Options{}), oops: oops}
	defer m.guest.Close()
	exit := vmm.Exit{Reason: vmm.Panic}
	m.fail(&Failure{Kind: Panic, Exit: exit, Text: "the guest's kernel panicked", Console: []byte("Fatal exception")})
	m.fail(oops) // after its grace
	assert.Equal(t, &Failure{Kind: Oops, Exit: exit, Text: "the guest's kernel oopsed", Console: []byte("Fatal exception")}, m.Failure())
}

func TestNeeds(t *testing.T) {
	list := needs(vmm.TransportMMIO, []virtio.Device{rng.New(nil), rng.New(nil)}, true, []string{"ext4", "virtio_rng"})
	assert.Equal(t, []string{"virtio_mmio", "vmw_vsock_virtio_transport", "virtio_rng", "overlay", "ext4"}, list)
	assert.Equal(t, []string{"virtio_pci", "vmw_vsock_virtio_transport"}, needs(vmm.TransportPCI, nil, false, nil))
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		root, dir, want string
		ok              bool
	}{
		{"", "/lib/modules/6.1", "/lib/modules/6.1", true},
		{"/srv/root", "/srv/root/lib/modules/6.1", "/lib/modules/6.1", true},
		{"/srv/root", "/srv/root", "/", true},
		{"/srv/root", "/lib/modules/6.1", "", false},
		{"/srv/root", "/srv/rootless", "", false},
	} {
		got, ok := below(c.root, c.dir)
		assert.Equal(t, c.want, got, "%+v", c)
		assert.Equal(t, c.ok, ok, "%+v", c)
	}
}

// closing counts its Close.
type closing struct {
	virtio.Device
	closed int
}

func (c *closing) Close() error { c.closed++; return nil }

func TestBadOptions(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	require.NoError(t, os.WriteFile(kernel, []byte("not a kernel"), 0o644))
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"relative":      {Options{Root: &Root{Writable: []string{"x"}}}, "x is not an absolute path"},
		"not there":     {Options{Root: &Root{Writable: []string{"/nowhere/at/all"}}}, "/nowhere/at/all"},
		"negative":      {Options{Hang: -1}, "negative"},
		"boot":          {Options{BootBound: -1}, "negative"},
		"no root":       {Options{Root: &Root{None: true, Writable: []string{"/tmp"}}}, "without a root"},
		"no such tree":  {Options{Root: &Root{Dir: "/nowhere"}}, "/nowhere"},
		"no name":       {Options{Modules: []string{"ext4", ""}}, "name of a kernel module is empty"},
		"no modules":    {Options{ModulesDir: "/nowhere"}, "/nowhere"},
		"which modules": {Options{Modules: []string{"ext4"}, ModulesDir: t.TempDir()}, "modules"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &closing{Device: rng.New(nil)}
			c.o.Machine.Kernel = kernel
			c.o.Machine.Devices = []virtio.Device{d}
			_, err := New(c.o)
			require.ErrorIs(t, err, ErrOptions)
			assert.ErrorContains(t, err, c.want)
			assert.Equal(t, 1, d.closed, "a device belongs to New")
		})
	}
}

func TestWatcherCountsItsOwnTime(t *testing.T) {
	m, err := New(Options{Machine: vmm.Config{Kernel: "/proc/self/exe"}, BootBound: 3 * tick, Hang: 2 * tick, Silence: -1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	w := watcher{m: m}
	require.Nil(t, w.tick())
	require.Nil(t, w.tick())
	f := w.tick()
	require.NotNil(t, f)
	assert.Equal(t, Hang, f.Kind)
	assert.Contains(t, f.Text, "has not come up within")

	w = watcher{m: m, ready: true}
	require.Nil(t, w.tick())
	m.Active()
	require.Nil(t, w.tick())
	require.Nil(t, w.tick())
	f = w.tick()
	require.NotNil(t, f)
	assert.Contains(t, f.Text, "nothing has come of the guest for")

	// Who takes what has come keeps the guest waiting.
	w = watcher{m: m, ready: true}
	m.Await()
	for range 10 {
		require.Nil(t, w.tick())
	}
	m.Awaited()
	require.Nil(t, w.tick())
	require.Nil(t, w.tick())
	require.NotNil(t, w.tick())
}

// TestNoBuiltinIndex: drivers that are not among the modules are taken for built in where
// nothing says what is, and the guest's failure tells of that.
func TestNoBuiltinIndex(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("extra/mine.ko:\n"), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "extra"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "extra/mine.ko"), []byte("\x7fELF"), 0o644))
	o := Options{Machine: vmm.Config{Kernel: "/proc/self/exe"}, ModulesDir: dir, Modules: []string{"mine"}}
	m, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	require.ErrorIs(t, m.missing, errNoBuiltin)
	assert.Equal(t, []string{"lib/modules/extra/mine.ko"}, m.archive.config.Modules)
	w := watcher{m: m}
	assert.Contains(t, w.notUp(), "it may lack modules: "+dir+": there is no modules.builtin")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), nil, 0o644))
	_, err = New(o)
	assert.ErrorIs(t, err, ErrNoDriver)
}

func TestCaller(t *testing.T) {
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	zero, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer zero.Close()
	assert.True(t, SameFile(null, null))
	assert.False(t, SameFile(null, zero))
	u, err := Caller()
	require.NoError(t, err)
	assert.EqualValues(t, os.Getuid(), u.UID)
	assert.LessOrEqual(t, Umask(), uint32(0o777))
}

// TestSecret: a guest's agent is told the guest's own secret.
func TestSecret(t *testing.T) {
	var all []wire.Secret
	for range 2 {
		m, err := New(Options{Machine: vmm.Config{Kernel: "/proc/self/exe"}, Root: &Root{None: true}})
		require.NoError(t, err)
		require.NoError(t, m.Close())
		assert.True(t, m.archive.config.Secret.Equal(m.Guest().Secret()))
		all = append(all, m.Guest().Secret())
	}
	assert.False(t, all[0].Equal(all[1]))
	assert.False(t, all[0].Equal(wire.Secret{}))
}

// TestCID: the guest has the context id that was asked for.
func TestCID(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux") // of which no modules are known
	require.NoError(t, os.WriteFile(kernel, []byte("\x7fELF"), 0o600))
	for asked, want := range map[uint32]uint64{0: 3, 77: 77} {
		m, err := New(Options{Machine: vmm.Config{Kernel: kernel}, Root: &Root{None: true}, CID: asked})
		require.NoError(t, err)
		var p [8]byte
		m.sockets.ReadConfig(0, p[:])
		assert.Equal(t, want, binary.LittleEndian.Uint64(p[:]))
		require.NoError(t, m.Close())
	}
}
