package vmm

import (
	"context"
	"encoding/binary"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkNewToEntry measures a machine of 128 MiB from the call of New to the
// first KVM_RUN; the kernel is 9 bytes, so that its reading does not count. The
// metric is the median; ns/op has the whole life, to the end of Close.
func BenchmarkNewToEntry(b *testing.B) {
	needKVM(b)
	img := payload(debugExit(1), spin)
	var took []time.Duration
	for b.Loop() {
		m, err := New(Config{KernelImage: img, Memory: 128 << 20})
		require.NoError(b, err)
		require.NoError(b, m.Start())
		_, err = m.Wait(context.Background())
		require.NoError(b, err)
		for _, mark := range m.Report().Timeline {
			if mark.Name == MarkEntry {
				took = append(took, mark.At)
			}
		}
		require.NoError(b, m.Close())
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-to-entry")
}

// BenchmarkExit measures one exit of a running machine and back: the whole way
// through Run, the bus and a device.
func BenchmarkExit(b *testing.B) {
	needKVM(b)
	const n = 20_000
	loop := func(body ...[]byte) [][]byte {
		code := slices.Concat(body...)
		head := binary.LittleEndian.AppendUint32([]byte{0xb9}, n) // mov ecx, n
		tail := []byte{0xff, 0xc9, 0x75, byte(-(len(code) + 4))}  // dec ecx; jnz
		return [][]byte{head, code, tail, debugExit(1), spin}
	}
	for _, tc := range []struct {
		name string
		code [][]byte
	}{
		{"port-in", loop(inb(com1Port + 5))},
		{"port-out", loop(outb(com1Port+7, 1))},
		{"mmio-write", loop(store8(bootTimerBase, 1))},
		{"console-byte", [][]byte{printLoop(n, true), debugExit(1), spin}}, // a look and a byte
	} {
		b.Run(tc.name, func(b *testing.B) {
			img := payload(tc.code...)
			var ns, allocs float64
			for b.Loop() {
				m, err := New(Config{KernelImage: img, Memory: 4 << 20})
				require.NoError(b, err)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				begin := time.Now()
				require.NoError(b, m.Start())
				_, err = m.Wait(context.Background())
				ns += float64(time.Since(begin))
				runtime.ReadMemStats(&after)
				require.NoError(b, err)
				require.NoError(b, m.Close())
				allocs += float64(after.Mallocs - before.Mallocs)
			}
			per := float64(b.N) * n
			b.ReportMetric(ns/per, "ns/exit")
			b.ReportMetric(allocs/per, "allocs/exit")
		})
	}
}
