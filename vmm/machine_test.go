package vmm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/devices"
	"github.com/vole-vmm/vole/kvm"
	"github.com/vole-vmm/vole/memory"
)

// patience bounds what a test waits for; nothing comes near it.
const patience = time.Minute

func run(t *testing.T, cfg Config) (Exit, *Machine) {
	t.Helper()
	needKVM(t)
	if cfg.Memory == 0 {
		cfg.Memory = 4 << 20
	}
	m, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	require.NoError(t, m.Start())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	exit, err := m.Wait(ctx)
	require.NoError(t, err, "console: %q", m.ConsoleTail())
	return exit, m
}

func TestEndings(t *testing.T) {
	for _, tc := range []struct {
		name    string
		code    [][]byte
		timeout time.Duration
		want    Reason
		wantN   int
	}{
		{"ACPI S5", [][]byte{powerOff(), spin}, 0, Poweroff, 0},
		{"keyboard reset", [][]byte{outb(0x64, 0xfe), spin}, 0, Reset, 0},
		{"ACPI reset", [][]byte{outb(powerPort+powerReset, powerResetValue), spin}, 0, Reset, 0},
		{"debug exit", [][]byte{debugExit(42), spin}, 0, DebugExit, 42},
		{"triple fault", [][]byte{triple, spin}, 0, TripleFault, 0},
		{"pvpanic", [][]byte{outb(pvpanicPort, 1), spin}, 0, Panic, 0},
		{"panic on the console, then a reset", [][]byte{say("[    1.0] Kernel panic - not syncing: x\n"), outb(0x64, 0xfe), spin}, 0, Panic, 0},
		{"panic on the console, then nothing", [][]byte{say("Kernel panic - not syncing: x\n"), spin}, 0, Panic, 0},
		{"panic on the console, then a triple fault", [][]byte{say("Kernel panic - not syncing: x\n"), triple}, 0, Panic, 0},
		{"spins until the timeout", [][]byte{spin}, 50 * time.Millisecond, Timeout, 0},
		{"halts until the timeout", [][]byte{cli, halt}, 50 * time.Millisecond, Timeout, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			exit, _ := run(t, Config{KernelImage: payload(tc.code...), Timeout: tc.timeout, PanicGrace: 100 * time.Millisecond})
			assert.Equal(t, tc.want, exit.Reason, "%v", exit)
			assert.Equal(t, tc.wantN, exit.Code)
		})
	}
}

func TestConsole(t *testing.T) {
	var out bytes.Buffer
	exit, m := run(t, Config{KernelImage: payload(say("hello\n"), powerOff(), spin), ConsoleOut: &out})
	assert.Equal(t, Poweroff, exit.Reason)
	assert.Equal(t, "hello\n", out.String())
	assert.Equal(t, "hello\n", string(m.ConsoleTail()))
}

func TestWrongOrderIsAnError(t *testing.T) {
	needKVM(t)
	m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20})
	require.NoError(t, err)
	ctx := context.Background()
	for name, f := range map[string]func() error{
		"pause": m.Pause, "resume": m.Resume, "power button": m.PowerButton, "kill": m.Kill,
		"wait": func() error { _, err := m.Wait(ctx); return err },
	} {
		assert.ErrorIs(t, f(), ErrState, name)
	}
	require.NoError(t, m.Start())
	assert.ErrorIs(t, m.Start(), ErrState)
	require.NoError(t, m.Kill())
	exit, err := m.Wait(ctx)
	require.NoError(t, err)
	assert.Equal(t, Killed, exit.Reason)
	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
	for name, f := range map[string]func() error{
		"start": m.Start, "pause": m.Pause, "resume": m.Resume, "power button": m.PowerButton,
	} {
		assert.ErrorIs(t, f(), ErrState, name)
	}
	exit, err = m.Wait(ctx)
	require.NoError(t, err)
	assert.Equal(t, Killed, exit.Reason)
}

func TestCloseWithoutStart(t *testing.T) {
	needKVM(t)
	m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20})
	require.NoError(t, err)
	require.NoError(t, m.Close())
	<-m.Done()
	assert.ErrorIs(t, m.Start(), ErrState)
}

// ticker counts up a byte in memory and sends it to the console, for ever.
var ticker = slices.Concat([]byte{0x66, 0xba, 0xf8, 0x03}, []byte{
	0xfe, 0xc0, // inc al
	0xee,       // out
	0xeb, 0xfb, // back to the inc
})

// tickerOut is where the ticker's out instruction is.
const tickerOut = payloadBase + 6

// tickChecker is a console that checks that the ticker's bytes come in order.
type tickChecker struct {
	mu   sync.Mutex
	next byte
	n    int
	bad  bool
	seen *sync.Cond
}

func newTickChecker() *tickChecker {
	c := &tickChecker{next: 1}
	c.seen = sync.NewCond(&c.mu)
	return c
}

func (c *tickChecker) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range p {
		c.bad = c.bad || b != c.next
		c.next = b + 1
	}
	c.n += len(p)
	c.seen.Broadcast()
	return len(p), nil
}

// more waits until n more bytes have come.
func (c *tickChecker) more(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for want := c.n + n; c.n < want; {
		c.seen.Wait()
	}
}

func TestPauseAndResumeLoseNothing(t *testing.T) {
	needKVM(t)
	out := newTickChecker()
	m, err := New(Config{KernelImage: payload(ticker), Memory: 4 << 20, ConsoleOut: out})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Start())
	for range 100 {
		out.more(1)
		require.NoError(t, m.Pause())
		require.NoError(t, m.Pause(), "paused already")
		before, err := m.vcpus[0].kvm.Regs()
		require.NoError(t, err)
		al := byte(m.serial.Stats().Sent)
		if before.RIP == tickerOut { // counted up, not sent yet
			al++
		}
		assert.Equal(t, al, byte(before.RAX), "no access is half done")
		after, err := m.vcpus[0].kvm.Regs()
		require.NoError(t, err)
		assert.Equal(t, before, after, "it stands still")
		require.NoError(t, m.Resume())
	}
	require.NoError(t, m.Kill())
	exit, err := m.Wait(context.Background())
	require.NoError(t, err)
	assert.Equal(t, Killed, exit.Reason)
	assert.False(t, out.bad, "bytes lost, doubled or out of order")
}

// TestMuchOutput: every byte that a guest sends comes out, in order; 10 MiB of
// them in make soak.
func TestMuchOutput(t *testing.T) {
	needKVM(t)
	n := 256 << 10
	if os.Getenv("VOLE_SUITE") == "soak" {
		n = 10 << 20
	}
	out := newTickChecker()
	m, err := New(Config{KernelImage: payload(ticker), Memory: 4 << 20, ConsoleOut: out})
	require.NoError(t, err)
	defer m.Close()
	begin := time.Now()
	require.NoError(t, m.Start())
	out.more(n)
	t.Logf("%.0f KiB/s", float64(n)/1024/time.Since(begin).Seconds())
	require.NoError(t, m.Kill())
	_, err = m.Wait(context.Background())
	require.NoError(t, err)
	assert.False(t, out.bad, "bytes lost, doubled or out of order")
}

// TestPauseAgainstResume: whoever wins, the guest goes on after the last Resume.
func TestPauseAgainstResume(t *testing.T) {
	needKVM(t)
	out := newTickChecker()
	m, err := New(Config{KernelImage: payload(ticker), Memory: 4 << 20, ConsoleOut: out})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Start())
	for range 200 {
		// A Pause that is overtaken before its vCPU has looked.
		m.mu.Lock()
		m.setGate(gatePause)
		m.setGate(gateRun)
		m.mu.Unlock()
		out.more(1)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for range 200 {
			_ = m.Pause()
		}
	})
	wg.Go(func() {
		for range 200 {
			_ = m.Resume()
		}
	})
	wg.Wait()
	require.NoError(t, m.Resume())
	out.more(1)
	r := m.Report()
	assert.Less(t, r.Exits["interrupted"], uint64(2000), "it does not spin: %v", r.Exits)
}

// TestPowerButtonAgainstClose is for the race detector.
func TestPowerButtonAgainstClose(t *testing.T) {
	needKVM(t)
	for range 20 {
		m, err := New(Config{KernelImage: payload(spin), Memory: 4 << 20})
		require.NoError(t, err)
		require.NoError(t, m.Start())
		var wg sync.WaitGroup
		wg.Go(func() {
			for m.PowerButton() == nil {
			}
		})
		wg.Go(func() { assert.NoError(t, m.Close()) })
		wg.Wait()
	}
}

func TestManyCPUs(t *testing.T) {
	needKVM(t)
	sys, err := kvm.Open("")
	require.NoError(t, err)
	defer sys.Close()
	n, err := sys.Check(kvm.CapMaxVCPUs)
	require.NoError(t, err)
	n = min(n, MaxCPUs)
	exit, m := run(t, Config{KernelImage: payload(powerOff(), spin), CPUs: n})
	assert.Equal(t, Poweroff, exit.Reason)
	assert.Equal(t, n, m.Report().VCPUs)
}

// TestAnyOrderFromAnyGoroutine throws every call at machines at once; nothing
// may hang, race or panic.
func TestAnyOrderFromAnyGoroutine(t *testing.T) {
	needKVM(t)
	for seed := range uint64(20) {
		m, err := New(Config{KernelImage: payload(ticker), Memory: 4 << 20, CPUs: 2, ConsoleOut: io.Discard})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		var wg sync.WaitGroup
		for g := range uint64(4) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, g))
				for range 50 {
					switch r.IntN(9) {
					case 0, 1:
						_ = m.Start()
					case 2, 3:
						_ = m.Pause()
					case 4, 5:
						_ = m.Resume()
					case 6:
						_ = m.PowerButton()
					case 7:
						m.Report()
						m.ConsoleTail()
					case 8:
						if r.IntN(20) == 0 {
							_ = m.Kill()
						}
					}
				}
			})
		}
		wg.Wait()
		_ = m.Start()
		require.NoError(t, m.Close())
		exit, err := m.Wait(ctx)
		cancel()
		require.NoError(t, err)
		assert.Equal(t, Killed, exit.Reason)
	}
}

// blockedWriter takes nothing until it is opened.
type blockedWriter struct {
	open chan struct{}
	mu   sync.Mutex
	got  []byte
}

func (w *blockedWriter) Write(p []byte) (int, error) {
	<-w.open
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, p...)
	return len(p), nil
}

func (m *Machine) hasEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

func TestBlockedConsole(t *testing.T) {
	needKVM(t)
	start := func(t *testing.T, cfg Config) (*Machine, *blockedWriter) {
		w := &blockedWriter{open: make(chan struct{})}
		cfg.KernelImage, cfg.Memory, cfg.ConsoleOut = payload(ticker), 4<<20, w
		m, err := New(cfg)
		require.NoError(t, err)
		require.NoError(t, m.Start())
		// The guest stands still when the buffer is full.
		for m.serial.Stats().Sent < devices.SerialOutBuffer && !m.hasEnded() {
			runtime.Gosched()
		}
		return m, w
	}
	t.Run("pause and go on", func(t *testing.T) {
		m, w := start(t, Config{})
		for range 10 {
			require.NoError(t, m.Pause())
			require.NoError(t, m.Resume())
		}
		assert.Less(t, m.serial.Stats().Sent, uint64(devices.SerialOutBuffer+100), "memory does not grow")
		require.NoError(t, m.Pause())
		close(w.open)
		sent := m.serial.Stats().Sent
		require.NoError(t, m.serial.Drain(context.Background()))
		w.mu.Lock()
		assert.Len(t, w.got, int(sent), "no byte is dropped")
		for i, b := range w.got {
			if b != byte(i+1) {
				require.Failf(t, "bytes out of order", "at %d", i)
			}
		}
		w.mu.Unlock()
		require.NoError(t, m.Close())
	})
	t.Run("close", func(t *testing.T) {
		m, w := start(t, Config{})
		_ = m.Close()
		exit, err := m.Wait(context.Background())
		require.NoError(t, err)
		assert.Equal(t, Killed, exit.Reason)
		assert.ErrorContains(t, exit.Err, "console")
		close(w.open)
	})
	t.Run("timeout", func(t *testing.T) {
		m, w := start(t, Config{Timeout: 300 * time.Millisecond})
		exit, err := m.Wait(context.Background())
		require.NoError(t, err)
		assert.Equal(t, Timeout, exit.Reason)
		close(w.open)
		_ = m.Close()
	})
}

func TestReport(t *testing.T) {
	_, m := run(t, Config{KernelImage: payload(say("x"), store8(bootTimerBase, 123), inb(0x3fd), powerOff(), spin)})
	r := m.Report()
	var names []string
	for i, mark := range r.Timeline {
		names = append(names, mark.Name)
		if i > 0 {
			assert.GreaterOrEqual(t, mark.At, r.Timeline[i-1].At)
		}
	}
	assert.Equal(t, []string{MarkCreated, MarkEntry, MarkConsole, MarkInit, MarkExit}, names)
	assert.Equal(t, uint64(2), r.Exits["port-out"])
	assert.Equal(t, uint64(1), r.Exits["port-in"])
	assert.Equal(t, uint64(1), r.Exits["mmio-write"])
	assert.Equal(t, Poweroff, r.Exit.Reason)
	b, err := json.Marshal(r)
	require.NoError(t, err)
	assert.Contains(t, string(b), `"poweroff"`)
}

func TestValidateNamesTheField(t *testing.T) {
	k := payload(spin)
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{KernelImage: k, Memory: 1 << 20}, "memory: 1M is too little: at least 2M"},
		{Config{KernelImage: k, Memory: 1 << 40}, "memory: 1T is too much"},
		{Config{KernelImage: k, Memory: 3<<20 + 1}, "not a multiple of 4096"},
		{Config{KernelImage: k, Memory: 3 << 20, Huge: memory.HugeReserved}, "memory: 3M is not a multiple of the reserved huge pages' 2M"},
		{Config{KernelImage: k, Huge: 7}, "huge pages: Huge(7)"},
		{Config{KernelImage: k, Backing: 7}, "memory backing: Backing(7)"},
		{Config{KernelImage: k, CPUs: 256}, "cpus: 256 is not between 1 and 255"},
		{Config{KernelImage: k, Timeout: -1}, "timeout: -1ns is negative"},
		{Config{KernelImage: k, PanicGrace: -1}, "panic grace"},
		{Config{KernelImage: k, Boot: 9}, "boot: BootMode(9)"},
		{Config{KernelImage: k, Cmdline: "a\x00b"}, "command line: it holds a zero byte"},
		{Config{}, "kernel: none named"},
	} {
		err := tc.cfg.Validate()
		assert.ErrorIs(t, err, ErrConfig)
		assert.ErrorContains(t, err, tc.want)
	}
}

// TestInternalErrorIsNamed runs what KVM's emulator does not know, where the
// emulator runs it.
func TestInternalErrorIsNamed(t *testing.T) {
	v, _, err := CPUVirtualization()
	require.NoError(t, err)
	if v != NoVirtualization {
		t.Skip("this processor executes what KVM's emulator does not know")
	}
	exit, _ := run(t, Config{KernelImage: payload([]byte{0xf3, 0x48, 0x0f, 0xb8, 0xc3}, powerOff(), spin)})
	assert.Equal(t, TripleFault, exit.Reason)
	assert.ErrorContains(t, exit.Err, "f3 48 0f b8 c3")
	assert.ErrorContains(t, exit.Err, "RIP 0x100000")
}
