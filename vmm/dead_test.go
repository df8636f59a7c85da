package vmm

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// still starts a machine that is asked soon whether it is dead.
func still(t *testing.T, cpus int, code ...[]byte) *Machine {
	needKVM(t)
	m, err := New(Config{KernelImage: payload(code...), Memory: 4 << 20, CPUs: cpus})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	m.stillness = time.Millisecond
	require.NoError(t, m.Start())
	return m
}

// TestDeadGuest: a guest that nothing can wake ends, with the reason.
func TestDeadGuest(t *testing.T) {
	for _, tc := range []struct {
		name string
		cpus int
		code [][]byte
		want Reason
	}{
		{"halted", 1, [][]byte{cli, halt}, TripleFault},
		{"halted after it worked", 1, [][]byte{printLoop(1000, true), cli, halt}, TripleFault},
		{"halted, the others never started", 3, [][]byte{cli, halt}, TripleFault},
		{"halted after a panic", 1, [][]byte{say("Kernel panic - not syncing: x\n"), cli, halt}, Panic},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := still(t, tc.cpus, tc.code...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			exit, err := m.Wait(ctx)
			require.NoError(t, err)
			assert.Equal(t, tc.want, exit.Reason)
			assert.ErrorIs(t, exit.Err, errDead)
			assert.Regexp(t, `^every processor has halted with its interrupts off \(rip 0x1[0-9a-f]{5}\)$`, exit.Err.Error())
		})
	}
}

// TestLivingGuest: what can go on is asked again and again, and lives.
func TestLivingGuest(t *testing.T) {
	sti := []byte{0xfb}
	for _, tc := range []struct {
		name string
		code [][]byte
	}{
		{"busy", [][]byte{spin}},
		{"busy with interrupts off", [][]byte{cli, spin}},
		{"halted with interrupts on", [][]byte{sti, halt}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := still(t, 1, tc.code...)
			require.Eventually(t, func() bool { return m.inquiry.Load() >= 4 }, patience, time.Millisecond)
			assert.False(t, m.hasEnded())
			require.NoError(t, m.Pause())
			n := m.inquiry.Load()
			require.Eventually(t, func() bool { return m.inquiry.Load() >= n+2 }, patience, time.Millisecond)
			assert.False(t, m.hasEnded(), "paused")
			require.NoError(t, m.Resume())
			require.NoError(t, m.Kill())
		})
	}
}

// TestDeadGuestPaused: a dead guest that is paused ends when it is resumed.
func TestDeadGuestPaused(t *testing.T) {
	needKVM(t)
	m, err := New(Config{KernelImage: payload(slices.Concat(cli, halt)), Memory: 4 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	m.stillness = 20 * time.Millisecond
	require.NoError(t, m.Start())
	require.NoError(t, m.Pause())
	n := m.inquiry.Load()
	require.Eventually(t, func() bool { return m.inquiry.Load() >= n+2 }, patience, time.Millisecond)
	require.False(t, m.hasEnded())
	require.NoError(t, m.Resume())
	exit, err := m.Wait(t.Context())
	require.NoError(t, err)
	assert.ErrorIs(t, exit.Err, errDead)
}
