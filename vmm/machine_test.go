package vmm

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
