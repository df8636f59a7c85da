package block_test

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/block/blocktest"
	"github.com/vole-vmm/vole/virtio/mmio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// TestFaults: whatever goes wrong in the image is an I/O error of that request
// and of no other.
func TestFaults(t *testing.T) {
	const bad, good = 8, 64 // sectors
	for _, c := range []struct {
		name  string
		fault blocktest.Fault
		kind  uint32
		say   string
	}{
		{"read: EIO", blocktest.Fault{Ops: blocktest.Read, Err: unix.EIO}, block.RequestIn, "read"},
		{"read: short", blocktest.Fault{Ops: blocktest.Read, ShortOnly: true, Short: 1000}, block.RequestIn, "read"},
		{"read: nothing", blocktest.Fault{Ops: blocktest.Read, ShortOnly: true}, block.RequestIn, "read"},
		{"read: EOF", blocktest.Fault{Ops: blocktest.Read, Err: io.EOF}, block.RequestIn, "read"},
		{"write: EIO", blocktest.Fault{Ops: blocktest.Write, Err: unix.EIO}, block.RequestOut, "write"},
		{"write: ENOSPC", blocktest.Fault{Ops: blocktest.Write, Err: unix.ENOSPC, Short: 512}, block.RequestOut, "write"},
		{"write: short", blocktest.Fault{Ops: blocktest.Write, ShortOnly: true, Short: 512}, block.RequestOut, "write"},
		{"discard: EIO", blocktest.Fault{Ops: blocktest.Discard, Err: unix.EIO}, block.RequestDiscard, "discard"},
		{"zeroes: ENOSPC", blocktest.Fault{Ops: blocktest.WriteZeroes, Err: unix.ENOSPC}, block.RequestWriteZeroes, "write zeroes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				img := blocktest.NewFaulty(block.NewMemory(mib))
				_, err := img.WriteAt(pattern(mib, 0), 0)
				require.NoError(t, err)
				var log lines
				d := attach(t, open, img, block.Options{Name: "vda", Logger: log.logger()}, 0)
				c.fault.From, c.fault.To = bad*512, (bad+8)*512
				img.Add(c.fault)
				do := func(sector uint64) byte {
					var status byte
					switch c.kind {
					case block.RequestIn:
						_, status = d.read(sector, 4096)
					case block.RequestOut:
						status = d.write(sector, pattern(4096, 1))
					default:
						status, _ = d.do(c.kind, 0, ranges([3]uint64{sector, 8, 0}), 0)
					}
					return status
				}
				assert.EqualValues(t, ok, do(good))
				assert.Empty(t, log.get())
				assert.EqualValues(t, ioError, do(bad))
				assert.EqualValues(t, ok, do(good))
				assert.EqualValues(t, ioError, do(bad))
				assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset, "the device lives")

				got := log.get()
				require.NotEmpty(t, got)
				assert.Equal(t, "vda", got[0]["disk"])
				assert.Equal(t, c.say, got[0]["request"])
				assert.NotEmpty(t, got[0]["error"])
				img.Clear()
				assert.EqualValues(t, ok, do(bad), "once the image is well")
			})
		})
	}
}

// TestFaultsAmongOthers: of many requests in flight, those that touch the bad
// piece fail.
func TestFaultsAmongOthers(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := blocktest.NewFaulty(block.NewMemory(mib))
		img.Add(blocktest.Fault{Ops: blocktest.All, From: 10 * 4096, To: 20 * 4096, Err: unix.EIO})
		d := attach(t, open, img, block.Options{Workers: 16}, 0)
		inFlight := map[uint32]int{}
		var all []*request
		for i := range 100 {
			kind, out, n := uint32(block.RequestIn), []byte(nil), 4096
			if i%2 == 0 {
				kind, out, n = block.RequestOut, pattern(4096, byte(i)), 0
			}
			r := d.begin(0, kind, uint64(i)*8, out, n)
			inFlight[uint32(r.head)] = i
			all = append(all, r)
		}
		for range all {
			u := d.Queues[0].Next()
			i, there := inFlight[u.Head]
			require.True(t, there, "a request ends once")
			delete(inFlight, u.Head)
			want := byte(ok)
			if i >= 10 && i < 20 {
				want = ioError
			}
			assert.Equal(t, want, d.Bytes(all[i].status)[0], "request %d", i)
		}
	})
}

// TestLogLines: at most one line a second, which says how many there were.
func TestLogLines(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := blocktest.NewFaulty(block.NewMemory(mib))
		img.Add(blocktest.Fault{Ops: blocktest.All, Err: unix.EIO})
		var log lines
		at := newClock()
		dev, err := block.NewWithClock(img, block.Options{Serial: "S1", Logger: log.logger()}, at)
		require.NoError(t, err)
		d := started(t, open, dev, 0)
		fail := func() {
			_, status := d.read(0, 512)
			require.EqualValues(t, ioError, status)
		}
		for range 50 {
			fail()
		}
		require.Len(t, log.get(), 1)
		assert.Equal(t, "0", log.get()[0]["unreported"])
		assert.Equal(t, "S1", log.get()[0]["disk"], "the serial, without a name")
		at.advance(time.Second - time.Nanosecond)
		fail()
		require.Len(t, log.get(), 1)
		at.advance(time.Nanosecond)
		fail()
		fail()
		require.Len(t, log.get(), 2)
		assert.Equal(t, "50", log.get()[1]["unreported"])
		at.advance(time.Hour)
		for range 10 {
			fail()
			at.advance(100 * time.Millisecond)
		}
		require.Len(t, log.get(), 3)

		// What the guest does wrong is no fault of the image.
		at.advance(time.Hour)
		for _, c := range []struct{ sector, n uint64 }{{1 << 60, 512}, {0, 100}} {
			_, status := d.read(c.sector, int(c.n))
			assert.EqualValues(t, ioError, status)
		}
		status, _ := d.do(77, 0, nil, 0)
		assert.EqualValues(t, unsupported, status)
		assert.Len(t, log.get(), 3)
	})
}

// TestFullDisk: an image whose storage is used up.
func TestFullDisk(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := block.NewMemory(mib)
		img.SetLimit(64 << 10)
		var log lines
		d := attach(t, open, img, block.Options{Logger: log.logger()}, 0)
		assert.EqualValues(t, ok, d.write(0, make([]byte, 4096)))
		for range 10 {
			assert.EqualValues(t, ioError, d.write(256, make([]byte, 4096)))
			_, status := d.read(256, 4096)
			assert.EqualValues(t, ok, status)
			assert.EqualValues(t, ok, d.write(8, make([]byte, 4096)))
		}
		assert.Contains(t, log.get()[0]["error"], "no space left")
		status, _ := d.do(block.RequestDiscard, 0, ranges([3]uint64{0, 128, 0}), 0)
		assert.EqualValues(t, ok, status)
		assert.EqualValues(t, ok, d.write(256, make([]byte, 4096)), "there is room again")
	})
}

// TestTruncatedUnderneath: what is gone is an error, what is left works.
func TestTruncatedUnderneath(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		path, img := newDisk(t, mib)
		other := attach(t, open, block.NewMemory(mib), block.Options{}, 0)
		var log lines
		d := attach(t, open, img, block.Options{Logger: log.logger()}, 0)
		require.NoError(t, os.Truncate(path, mib/2))
		for range 5 {
			_, status := d.read(mib/2/512, 4096)
			assert.EqualValues(t, ioError, status)
			_, status = d.read(mib/2/512-4, 4096)
			assert.EqualValues(t, ioError, status, "in part")
			assert.EqualValues(t, ioError, d.write(mib/512-8, make([]byte, 4096)))
			got, status := d.read(0, 4096)
			assert.EqualValues(t, ok, status)
			assert.Equal(t, pattern(mib, 0)[:4096], got)
			assert.EqualValues(t, ok, d.write(8, pattern(mib, 0)[4096:8192]))
			assert.EqualValues(t, ok, other.write(0, make([]byte, 512)))
		}
		st, err := os.Stat(path)
		require.NoError(t, err)
		assert.EqualValues(t, mib/2, st.Size(), "nothing made it longer")
		assert.Contains(t, []int{1, 2}, len(log.get()), "one line a second")
	})
}

// TestTruncatedBeforeAWrite: the loss is noticed though nothing has read or
// flushed since, and no hole takes the place of what was lost.
func TestTruncatedBeforeAWrite(t *testing.T) {
	for _, c := range []struct {
		name string
		kind uint32
		out  []byte
	}{
		{"write", block.RequestOut, make([]byte, 512)},
		{"discard", block.RequestDiscard, ranges([3]uint64{mib/512 - 8, 8, 0})},
		{"write zeroes", block.RequestWriteZeroes, ranges([3]uint64{mib/512 - 1, 1, 0})},
		{"write zeroes, unmap", block.RequestWriteZeroes, ranges([3]uint64{mib/512 - 1, 1, 1})},
	} {
		t.Run(c.name, func(t *testing.T) {
			virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
				path, img := newDisk(t, mib)
				d := attach(t, open, img, block.Options{}, 0)
				require.NoError(t, os.Truncate(path, mib/2))
				status, _ := d.do(c.kind, mib/512-1, c.out, 0)
				assert.EqualValues(t, ioError, status)
				st, err := os.Stat(path)
				require.NoError(t, err)
				assert.EqualValues(t, mib/2, st.Size(), "nothing made it longer")
				assert.EqualValues(t, ok, d.write(0, make([]byte, 512)), "what is left works")
				require.NoError(t, os.Truncate(path, mib))
				status, _ = d.do(block.RequestFlush, 0, nil, 0)
				assert.EqualValues(t, ioError, status, "what was lost is not back")
			})
		})
	}
}

// TestRemovedUnderneath: the file lives as long as it is open.
func TestRemovedUnderneath(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		path, img := newDisk(t, mib)
		var log lines
		d := attach(t, open, img, block.Options{Logger: log.logger()}, 0)
		require.NoError(t, os.Remove(path))
		assert.EqualValues(t, ok, d.write(0, pattern(4096, 4)))
		got, status := d.read(0, 4096)
		assert.EqualValues(t, ok, status)
		assert.Equal(t, pattern(4096, 4), got)
		status, _ = d.do(block.RequestFlush, 0, nil, 0)
		assert.EqualValues(t, ok, status)
		assert.NoError(t, d.dev.Refresh())
		assert.Empty(t, log.get())
	})
}

// TestHangingBackend: it stalls its own disk only, and of that only the requests
// that it holds while there are workers left.
func TestHangingBackend(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := blocktest.NewFaulty(block.NewMemory(mib))
		hang := img.Add(blocktest.Fault{Ops: blocktest.All, Block: true})
		d := attach(t, open, img, block.Options{Workers: 4}, 0)
		t.Cleanup(hang.Release)
		other := attach(t, open, block.NewMemory(mib), block.Options{}, 0)
		var held []*request
		for range 40 {
			held = append(held, d.begin(0, block.RequestIn, 0, nil, 512))
		}
		for range 4 {
			<-hang.Arrived()
		}
		for i := range 200 {
			require.EqualValues(t, ok, other.write(uint64(i), pattern(512, byte(i))))
		}
		assert.Zero(t, d.Queues[0].UsedIndex())
		assert.Equal(t, 4, hang.Hits(), "no more than there are workers")
		hang.Release()
		for range held {
			d.Queues[0].Next()
		}
		for _, r := range held {
			assert.EqualValues(t, ok, d.Bytes(r.status)[0])
		}
	})
}

// beside makes a second disk of first's guest, as a machine has it: a Function of its
// own, with its own doorbells, over the same memory.
func beside(t *testing.T, first disk, img block.Image, o block.Options) disk {
	t.Helper()
	dev, err := block.New(img, o)
	require.NoError(t, err)
	line := virtiotest.NewCounter()
	m, err := mmio.New(virtio.FunctionConfig{Device: dev, Memory: first.Mem}, line)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, m.Function().Close(patient(t)))
		assert.NoError(t, dev.Close())
	})
	// The driver of the second takes its memory from here on, that of the first
	// from behind it.
	second := *first.Driver
	first.Alloc(virtiotest.RAM/2, 1)
	second.Regs, second.Function = virtiotest.MMIORegisters{Device: m}, m.Function()
	second.QueueIRQ, second.ConfigIRQ, second.Queues = line, line, nil
	d := disk{Driver: &second, t: t, dev: dev}
	d.Start(0)
	return d
}

// TestHangingBackendOfOneMachine: of two disks of one guest, in one memory, that whose
// image hangs keeps the other from nothing: neither from requests nor from a pause, a
// reset or its end.
func TestHangingBackendOfOneMachine(t *testing.T) {
	for _, prompt := range []bool{false, true} {
		for name, o := range map[string]block.Options{"one worker": {Workers: 1}, "many": {Workers: block.MaxWorkers}} {
			t.Run(map[bool]string{false: "waits/", true: "prompt/"}[prompt]+name, func(t *testing.T) {
				faulty := blocktest.NewFaulty(block.NewMemory(mib))
				hanging := block.Image(faulty)
				if prompt {
					hanging = blocktest.NewHasty(faulty, 1)
				}
				d := attach(t, virtiotest.OpenMMIO, hanging, o, 0)
				other := beside(t, d, block.NewMemory(mib), block.Options{})
				hang := faulty.Add(blocktest.Fault{Ops: blocktest.All, Block: true})
				t.Cleanup(hang.Release)
				held := inFlight(d, 64)
				for range o.Workers {
					receive(t, hang.Arrived())
				}
				for round := range 4 {
					for i := range 50 {
						data := pattern(4096, byte(round+i))
						require.EqualValues(t, ok, other.write(uint64(i)*8, data))
						got, status := other.read(uint64(i)*8, 4096)
						require.EqualValues(t, ok, status)
						require.True(t, bytes.Equal(data, got))
						status, _ = other.do(block.RequestFlush, 0, nil, 0)
						require.EqualValues(t, ok, status)
					}
					require.NoError(t, other.Function.Pause(patient(t)))
					other.Function.Resume()
					require.NoError(t, other.dev.Refresh())
					other.Start(0)
				}
				require.NoError(t, other.Function.Close(patient(t)))
				assert.Zero(t, d.Queues[0].UsedIndex(), "the first still hangs")
				assert.Equal(t, o.Workers, hang.Hits())

				hang.Release()
				for range held {
					d.Queues[0].Next()
				}
				for _, r := range held {
					assert.EqualValues(t, ok, d.Bytes(r.status)[0])
				}
			})
		}
	}
}
