package vmm

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
)

// printLoop sends n bytes that count up from 0, forever if n is 0; look says how
// the guest looks at the port before each: not at all, or at LSR.
func printLoop(n uint32, look bool) []byte {
	code := []byte{0x31, 0xdb} // xor ebx, ebx
	top := len(code)
	if look {
		code = append(code, inb(com1Port+5)...)
	}
	code = append(code, 0x66, 0xba, 0xf8, 0x03) // mov dx, 0x3f8
	code = append(code, 0x88, 0xd8, 0xee)       // mov al, bl; out dx, al
	code = append(code, 0xff, 0xc3)             // inc ebx
	if n == 0 {
		return append(code, 0xeb, byte(top-len(code)-2)) // jmp top
	}
	code = binary.LittleEndian.AppendUint32(append(code, 0x81, 0xfb), n) // cmp ebx, n
	return append(code, 0x75, byte(top-len(code)-2))                     // jne top
}

// counted is what printLoop sends.
func counted(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i)
	}
	return p
}

// TestCollectedConsole: a guest that prints much needs one exit a byte and not
// two, and every byte arrives in its order, also those that no exit brings before
// the end.
func TestCollectedConsole(t *testing.T) {
	const n = 20_000
	death := "\nKernel panic - not syncing: x\n"
	for _, tc := range []struct {
		name string
		end  []byte
		want Reason
		last string
	}{
		{"power off", powerOff(), Poweroff, ""},
		{"words before a triple fault", slices.Concat(say(death), triple), Panic, death},
		{"words before a reset", slices.Concat(say(death), outb(0x64, 0xfe)), Panic, death},
		{"words before nothing", slices.Concat(say(death), spin), Panic, death},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			exit, m := run(t, Config{
				KernelImage: payload(printLoop(n, true), tc.end, spin), ConsoleOut: &out, PanicGrace: 100 * time.Millisecond,
			})
			assert.Equal(t, tc.want, exit.Reason, "%v", exit)
			assert.Equal(t, string(counted(n))+tc.last, out.String())
			if m.collector.serial.Load() {
				assert.LessOrEqual(t, m.Report().Exits["port-out"], uint64(collectAfter+1))
			} else {
				t.Log("this KVM does not collect")
			}
		})
	}
}

// TestImpoliteConsole: a guest that sends without looking for room is not
// collected from; one that begins so later loses nothing, though it fills the ring.
func TestImpoliteConsole(t *testing.T) {
	const n = 20_000
	var out strings.Builder
	_, m := run(t, Config{KernelImage: payload(printLoop(n, false), powerOff(), spin), ConsoleOut: &out})
	assert.Equal(t, string(counted(n)), out.String())
	assert.False(t, m.collector.serial.Load())
	assert.EqualValues(t, n+1, m.Report().Exits["port-out"])

	out.Reset()
	_, m = run(t, Config{KernelImage: payload(printLoop(collectAfter, true), printLoop(n, false), powerOff(), spin), ConsoleOut: &out})
	assert.Equal(t, string(counted(collectAfter))+string(counted(n)), out.String())
	if m.collector.serial.Load() {
		assert.Less(t, m.Report().Exits["port-out"], uint64(n/100))
	}
}

func TestManners(t *testing.T) {
	look := func(n *manners) bool { return n.polite(com1Status, false, 1) }
	send := func(n *manners, size int) bool { return n.polite(com1Data, true, size) }
	for _, tc := range []struct {
		name  string
		burst []int // sizes of the writes that follow a look
		want  bool
	}{
		{"a byte at a time", []int{1}, true},
		{"a FIFO at a time", slices.Repeat([]int{1}, serialFIFO), true},
		{"more than a FIFO", slices.Repeat([]int{1}, serialFIFO+1), false},
		{"a string instruction", []int{serialFIFO + 1}, false},
		{"only looks", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n manners
			got := false
			for i := range 4 * collectAfter {
				look(&n)
				for _, size := range tc.burst {
					got = send(&n, size)
				}
				if i < collectAfter-1 {
					require.False(t, got, i)
				}
			}
			assert.Equal(t, tc.want, got)
		})
	}
	var n manners
	for range 4 * collectAfter {
		require.False(t, send(&n, 1), "never looks")
	}
}

// TestCollectedConsoleWaits: a guest that prints much waits for a slow reader, and
// loses nothing to it.
func TestCollectedConsoleWaits(t *testing.T) {
	const n = 200_000
	r, w := io.Pipe()
	got := make(chan []byte)
	go func() {
		var all []byte
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				got <- all
				return
			}
		}
	}()
	_, m := run(t, Config{KernelImage: payload(printLoop(n, true), powerOff(), spin), ConsoleOut: w})
	w.Close()
	assert.Equal(t, counted(n), <-got)
	assert.Zero(t, m.serial.Stats().Dropped)
}

// gated is a writer that takes nothing before it is open.
type gated struct {
	open chan struct{}
	n    atomic.Int64
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.open
	g.n.Add(int64(len(p)))
	return len(p), nil
}

// TestCollectedConsoleIsBounded: while nobody reads, a guest that looks at the
// port stands still with no more than the buffer and a ring's worth sent.
func TestCollectedConsoleIsBounded(t *testing.T) {
	needKVM(t)
	g := &gated{open: make(chan struct{})}
	m, err := New(Config{KernelImage: payload(printLoop(0, true)), Memory: 4 << 20, ConsoleOut: g})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	require.NoError(t, m.Start())
	full := func() bool { return m.serial.Stats().Sent >= 64<<10 }
	require.Eventually(t, full, patience, time.Millisecond)
	exits := func() uint64 { r := m.Report(); return r.Exits["port-in"] + r.Exits["port-out"] }
	// It stands still once two looks find the same.
	last := exits()
	require.Eventually(t, func() bool { now := exits(); same := now == last; last = now; return same }, patience, 20*time.Millisecond)
	assert.Less(t, m.serial.Stats().Sent, uint64(64<<10+512))
	assert.Zero(t, m.serial.Stats().Dropped)
	close(g.open)
	require.Eventually(t, func() bool { return g.n.Load() > 65<<10 }, patience, time.Millisecond)
	require.NoError(t, m.Kill())
}

const flagAt = payloadBase + 0x1000

// byteByByte is a guest that sends a byte whenever the word at flagAt says so, and
// never looks at the port; it begins with collectAfter bytes on its own.
func byteByByte() []byte {
	code := printLoop(collectAfter, true)
	code = append(code, 0xbf)
	code = binary.LittleEndian.AppendUint32(code, flagAt) // mov edi, flagAt
	return append(code,
		0x83, 0x3f, 0x00, // cmp dword [rdi], 0
		0x74, 0xfb, // je -5
		0xc7, 0x07, 0, 0, 0, 0, // mov dword [rdi], 0
		0xee,       // out dx, al
		0xeb, 0xf2, // jmp -14
	)
}

// lockstep runs byteByByte.
type lockstep struct {
	m    *Machine
	flag []byte
	sent uint64
}

func newLockstep(t *testing.T) *lockstep {
	needKVM(t)
	m, err := New(Config{KernelImage: payload(byteByByte()), Memory: 4 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	flag, err := m.mem.Slice(flagAt, 4)
	require.NoError(t, err)
	require.NoError(t, m.Start())
	l := &lockstep{m: m, flag: flag, sent: collectAfter}
	l.arrived(t)
	if !m.collector.serial.Load() {
		t.Skip("this KVM does not collect port writes")
	}
	return l
}

func (l *lockstep) arrived(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return l.m.serial.Stats().Sent == l.sent }, patience, time.Millisecond)
}

// send has the guest send a byte and waits until it has come.
func (l *lockstep) send(t *testing.T) {
	t.Helper()
	virtio.Store16(l.flag, 0, 1)
	l.sent++
	l.arrived(t)
}

// TestGlance: a byte that no exit brings comes all the same, also when the guest
// has left its console alone for long.
func TestGlance(t *testing.T) {
	l := newLockstep(t)
	l.send(t)
	require.Eventually(t, l.m.collector.asleep.Load, patience, time.Millisecond)
	l.send(t)
	assert.True(t, l.m.collector.serial.Load())
	require.NoError(t, l.m.Pause())
	require.NoError(t, l.m.Resume())
	l.send(t)
}

// TestGlanceGivesUp: a guest that waits after each byte gets its exits back.
func TestGlanceGivesUp(t *testing.T) {
	l := newLockstep(t)
	outs := func() uint64 { return l.m.Report().Exits["port-out"] }
	const most = 100 * collectPatience
	before := outs()
	for range most {
		l.send(t)
		if !l.m.collector.serial.Load() {
			break
		}
	}
	if l.m.collector.serial.Load() {
		// Seen once. That is right only where KVM has collected none of the bytes.
		require.Equal(t, before+most, outs(), "it has not given up; exits: %v", l.m.Report().Exits)
	}
	before = outs()
	for range 10 {
		l.send(t)
	}
	assert.Equal(t, before+10, outs(), "exits: %v", l.m.Report().Exits)
}

func TestCollectedConsoleDoesNotAllocate(t *testing.T) {
	needKVM(t)
	m, err := New(Config{KernelImage: payload(printLoop(0, true)), Memory: 4 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	c := m.vcpus[0]
	m.serial.Start()
	exit := func() {
		reason, err := c.kvm.Run()
		if err != nil {
			panic(err)
		}
		c.handle(reason)
	}
	for range 4 * collectAfter {
		exit()
	}
	assert.Zero(t, testing.AllocsPerRun(1000, exit))
}
