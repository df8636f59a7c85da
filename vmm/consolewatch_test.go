package vmm

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestDeathWatch(t *testing.T) {
	const end = "[    3.3] ---[ end Kernel panic - not syncing: Attempted to kill init! ]---\n"
	for _, tc := range []struct {
		name     string
		console  string
		panicked bool
		delay    time.Duration
	}{
		{"nothing", "hello\n", false, 0},
		{"stamped", "[    1.234567] Kernel panic - not syncing: VFS\r\n", true, 0},
		{"no time stamps", "Kernel panic - not syncing: VFS\n", true, 0},
		{"with caller", "[    1.2][    T1] Kernel panic - not syncing: VFS\n", true, 0},
		{"behind a prompt", "bash# [   12.000001] Kernel panic - not syncing: sysrq\n", true, 0},
		{"said by user space", "grep: Kernel panic - not syncing: nothing\n", false, 0},
		{"unfinished line", "[    1.2] Kernel panic - not syncing", false, 0},
		{"restart after all", "[    1.2] Kernel panic - not syncing: x\n[    1.3] reboot: Restarting system\n", false, 0},
		{"more of the panic", "[    1.2] Kernel panic - not syncing: x\n[    1.2] CPU: 0 PID: 1\n" + end, true, 0},
		{"the terminal's buffers empty themselves", "[    1.2] Kernel panic - not syncing: x\n" + end + strings.Repeat("yes\n", 1000), true, 0},
		{"user space lives on", "[    1.2] Kernel panic - not syncing: x\n" + end + strings.Repeat("a line\n", 2000), false, 0},
		{"it lives on without the panic's end", "[    1.2] Kernel panic - not syncing: x\n" + strings.Repeat("a line\n", 2000), false, 0},
		{"the kernel lives on", "[    1.2] Kernel panic - not syncing: x\n" + end + "[    3.4] eth0: link up\n", false, 0},
		{"an old log", "[99999.2] Kernel panic - not syncing: x\n", false, 0},
		{"no stamp where others have one", "[    0.1] Linux version 6\nKernel panic - not syncing: x\n", false, 0},
		{"a crash kernel", "[    1.2] Kernel panic - not syncing: x\n[    0.0] Linux version 6\n[    4.0] reboot: Restarting system\n", true, 0},
		{"behind a progress bar", strings.Repeat("\r 50 %", 1000) + "\r[    1.2] Kernel panic - not syncing: x\r\n", true, 0},
		{"behind many dots", strings.Repeat(".", 5000) + "[    1.2] Kernel panic - not syncing: x\n", true, 0},
		{"delay", "[    1.2] Kernel panic - not syncing: x\n[    1.3] Rebooting in 30 seconds..\n", true, 30 * time.Second},
		{"absurd delay", "[    1.2] Kernel panic - not syncing: x\n[    1.3] Rebooting in 99999999999999999999 seconds..\n", true, 0},
		{"deep in a long line", "[    1.2] " + strings.Repeat("x", 5*maxLine) + "Kernel panic - not syncing\n", false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var delay time.Duration
			w := newConsoleWatch(func(e consoleEvent) { delay = max(delay, e.delay) }, func() time.Duration { return 5 * time.Second })
			for _, b := range []byte(tc.console) {
				w.add(b)
			}
			assert.Equal(t, tc.panicked, w.panicked())
			assert.Equal(t, tc.delay, delay)
		})
	}
}

func now0() time.Duration { return 0 }

func TestConsoleWatchMarks(t *testing.T) {
	var kinds []consoleEventKind
	w := newConsoleWatch(func(e consoleEvent) { kinds = append(kinds, e.kind) }, now0)
	for _, b := range []byte("a\n[    0.5] Run /init as init process\n") {
		w.add(b)
	}
	assert.Equal(t, []consoleEventKind{consoleFirstByte, consoleInit}, kinds)
}

func TestConsoleTail(t *testing.T) {
	for _, n := range []int{0, 1, tailSize - 1, tailSize, tailSize + 1, 3*tailSize + 17} {
		w := newConsoleWatch(func(consoleEvent) {}, now0)
		all := make([]byte, n)
		for i := range all {
			all[i] = byte(i / 7)
			w.add(all[i])
		}
		want := all[max(0, n-tailSize):]
		assert.True(t, bytes.Equal(want, w.last()), "%d bytes", n)
	}
}

func FuzzDeathWatch(f *testing.F) {
	f.Add([]byte("[    1.2] Kernel panic - not syncing: x\n[ 1.3] Rebooting in 5 seconds..\n"))
	f.Add([]byte("<0>[\n]\n[] Kernel panic - not syncing\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newConsoleWatch(func(e consoleEvent) {
			if e.delay < 0 || e.delay > 1e6*time.Second {
				t.Fatalf("delay %v", e.delay)
			}
		}, now0)
		for _, c := range b {
			w.add(c)
		}
		w.last()
	})
}

func BenchmarkConsoleByte(b *testing.B) {
	w := newConsoleWatch(func(consoleEvent) {}, now0)
	line := []byte("[    0.123456] ACPI: Interpreter enabled and so on for a while\n")
	b.ReportAllocs()
	for b.Loop() {
		for _, c := range line {
			w.add(c)
		}
	}
	b.SetBytes(int64(len(line)))
}
