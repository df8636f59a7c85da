package block_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/block/blocktest"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

const mib = 1 << 20

// eachDisk runs f on both transports with a disk of 1 MiB in memory, which has
// the content of pattern.
func eachDisk(t *testing.T, f func(t *testing.T, d disk, img *block.Memory)) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := block.NewMemory(mib)
		_, err := img.WriteAt(pattern(mib, 0), 0)
		require.NoError(t, err)
		f(t, attach(t, open, img, block.Options{Serial: "S-1234"}, 0), img)
	})
}

// TestReadAndWrite: VIRTIO 1.2, section 5.2.6.
func TestReadAndWrite(t *testing.T) {
	eachDisk(t, func(t *testing.T, d disk, img *block.Memory) {
		want := content(t, img)
		for _, c := range []struct{ sector, n uint64 }{{0, 512}, {7, 4096}, {mib/512 - 1, 512}, {0, 256 << 10}} {
			got, status := d.read(c.sector, int(c.n))
			assert.EqualValues(t, ok, status)
			assert.Equal(t, want[c.sector*512:][:c.n], got)
			data := pattern(int(c.n), 0x55)
			assert.EqualValues(t, ok, d.write(c.sector, data))
			copy(want[c.sector*512:], data)
			assert.Equal(t, want, content(t, img))
		}
	})
}

// TestRequestTypes: VIRTIO 1.2, section 5.2.6.2: a type that the device does not
// know, or that was not negotiated, is UNSUPP and touches nothing.
func TestRequestTypes(t *testing.T) {
	eachDisk(t, func(t *testing.T, d disk, img *block.Memory) {
		before := content(t, img)
		for kind, want := range map[uint32]byte{
			block.RequestIn: ok, block.RequestFlush: ok, block.RequestGetID: ok,
			2: unsupported, 3: unsupported, 5: unsupported, 7: unsupported, 9: unsupported, 10: unsupported,
			12: unsupported, 14: unsupported, 15: unsupported, 0x100: unsupported, 1 << 31: unsupported, math.MaxUint32: unsupported,
		} {
			status, r := d.do(kind, 0, nil, 512)
			assert.Equal(t, want, status, "type %d", kind)
			if want == unsupported {
				assert.Equal(t, bytes.Repeat([]byte{0xaa}, 512), r.data(), "type %d", kind)
				assert.Zero(t, r.len)
			}
		}
		assert.Equal(t, before, content(t, img))
		assert.Zero(t, d.Regs.Status()&virtio.StatusNeedsReset)

		d.Start(virtio.FeatureIndirectDesc) // no DISCARD, no WRITE_ZEROES, no FLUSH
		status, _ := d.do(block.RequestFlush, 0, nil, 0)
		assert.EqualValues(t, unsupported, status)
		for _, kind := range []uint32{block.RequestDiscard, block.RequestWriteZeroes} {
			status, _ := d.do(kind, 0, ranges([3]uint64{0, 8, 0}), 0)
			assert.EqualValues(t, unsupported, status, "rule 3: what was not acknowledged is not used")
		}
		assert.Equal(t, before, content(t, img))
	})
}

// TestGetID: VIRTIO 1.2, section 5.2.6: 20 bytes, padded with zeroes, without a
// terminator if all are used.
func TestGetID(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for _, serial := range []string{"", "x", "12345678901234567890"} {
			d := attach(t, open, block.NewMemory(mib), block.Options{Serial: serial}, 0)
			want := append([]byte(serial), make([]byte, block.MaxSerial-len(serial))...)
			status, r := d.do(block.RequestGetID, 1<<60, nil, block.MaxSerial)
			assert.EqualValues(t, ok, status)
			assert.Equal(t, want, r.data())
			assert.EqualValues(t, block.MaxSerial+1, r.len)

			status, r = d.do(block.RequestGetID, 0, nil, 4)
			assert.EqualValues(t, ok, status)
			assert.Equal(t, want[:4], r.data(), "a short buffer gets what it can hold")
			status, r = d.do(block.RequestGetID, 0, nil, 64)
			assert.EqualValues(t, ok, status)
			assert.Equal(t, append(slices.Clone(want), bytes.Repeat([]byte{0xaa}, 44)...), r.data())
			assert.EqualValues(t, block.MaxSerial, r.len, "rule 14: only what was written")
			status, _ = d.do(block.RequestGetID, 0, nil, 0)
			assert.EqualValues(t, ok, status)
		}
	})
}

// TestSectorArithmetic: rule 16: nothing reaches past the end of the disk, and
// no sum wraps. The first and last sector work.
func TestSectorArithmetic(t *testing.T) {
	const sectors = mib / 512
	eachDisk(t, func(t *testing.T, d disk, img *block.Memory) {
		before := content(t, img)
		for _, c := range []struct {
			name   string
			sector uint64
			n      int
			want   byte
		}{
			{"the last", sectors - 1, 512, ok},
			{"over the end", sectors - 1, 1024, ioError},
			{"at the end", sectors, 512, ioError},
			{"past the end", sectors + 1, 512, ioError},
			{"from the first on, one too many", 1, mib, ioError},
			{"no data", 0, 0, ioError},
			{"no data at the end", sectors, 0, ioError},
			{"a byte", 0, 1, ioError},
			{"a byte less", 0, 511, ioError},
			{"a byte more", 0, 513, ioError},
			{"wraps to 0 in bytes", 1 << 55, 512, ioError},
			{"wraps to the last in bytes", 1<<55 + sectors - 1, 512, ioError},
			{"negative in bytes", 1 << 54, 512, ioError},
			{"negative", 1 << 63, 512, ioError},
			{"the largest", math.MaxUint64, 512, ioError},
			{"the sum wraps", math.MaxUint64, 1024, ioError},
			{"the sum wraps to the middle", math.MaxUint64 - 3, 16 * 512, ioError},
		} {
			status, r := d.do(block.RequestIn, c.sector, nil, c.n)
			assert.Equal(t, c.want, status, "read: %s", c.name)
			if c.want != ok {
				assert.Equal(t, bytes.Repeat([]byte{0xaa}, c.n), r.data(), "read: %s", c.name)
				if c.n > 0 {
					assert.Zero(t, r.len, "read: %s", c.name)
				}
				assert.EqualValues(t, c.want, d.write(c.sector, make([]byte, c.n)), "write: %s", c.name)
			}
		}
		assert.Equal(t, before, content(t, img))
	})
}

// TestLongestTransfer: a chain can't make a request longer than the buffers that
// the configuration allows, by naming one of them several times or otherwise.
func TestLongestTransfer(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := &recorder{Memory: block.NewMemory(8 * mib)}
		d := attach(t, open, img, block.Options{QueueSize: 8}, 0)
		c := d.config()
		most := int(c.SegMax) * int(c.SizeMax)
		require.Equal(t, 6*mib, most)
		in, out := d.In(2*mib), d.Out(make([]byte, 2*mib))
		for _, kind := range []uint32{block.RequestIn, block.RequestOut} {
			for n, want := range map[int]byte{most: ok, most + 512: ioError, 8 * mib: ioError} {
				status, data := d.In(1), in
				if kind == block.RequestOut {
					data = out
				}
				bufs := []virtiotest.Buffer{d.Out(header(kind, 0))}
				for ; n > 0; n -= int(data.Len) {
					data.Len = uint32(min(n, 2*mib))
					bufs = append(bufs, data)
				}
				d.Queues[0].AddIndirect(append(bufs, status)...)
				d.Queues[0].Kick()
				d.Queues[0].Next()
				assert.Equal(t, want, d.Bytes(status)[0])
			}
		}
		assert.Equal(t, []string{"write"}, img.take())
	})
}

// TestFraming: VIRTIO 1.2, section 2.7.4: no framing is assumed. The header may
// be split or share a buffer with data, the status stand in the last byte of
// one.
func TestFraming(t *testing.T) {
	data := pattern(1024, 7)
	sub := func(b virtiotest.Buffer, from, n int) virtiotest.Buffer {
		return virtiotest.Buffer{GPA: b.GPA + uint64(from), Len: uint32(n), Write: b.Write}
	}
	// cut makes pieces of a buffer that end where ends says.
	cut := func(b virtiotest.Buffer, ends ...int) []virtiotest.Buffer {
		var out []virtiotest.Buffer
		from := 0
		for _, end := range append(ends, int(b.Len)) {
			out = append(out, sub(b, from, end-from))
			from = end
		}
		return out
	}
	eachDisk(t, func(t *testing.T, d disk, img *block.Memory) {
		q := d.Queues[0]
		for _, c := range []struct {
			name string
			out  []int // where the readable buffer is cut
			in   []int // and the writable one
		}{
			{"header split in two", []int{7}, nil},
			{"header in bytes", []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, nil},
			{"header shares with data", []int{16 + 100}, nil},
			{"header alone", []int{16}, nil},
			{"status shares with data", nil, []int{1000}},
			{"status alone", nil, []int{1024}},
			{"data in odd pieces", []int{16, 17, 530, 531}, []int{1, 511, 513, 1023, 1024}},
			{"empty descriptors", []int{0, 16, 16, 16}, []int{0, 0, 512, 512, 1024}},
		} {
			t.Run(c.name, func(t *testing.T) {
				for _, add := range []func(...virtiotest.Buffer) uint16{q.Add, q.AddIndirect} {
					_, err := img.WriteAt(make([]byte, 1024), 0)
					require.NoError(t, err)
					in := d.In(1)
					add(append(cut(d.Out(append(header(block.RequestOut, 0), data...)), c.out...), in)...)
					q.Kick()
					u := q.Next()
					assert.EqualValues(t, 1, u.Len)
					assert.Equal(t, []byte{ok}, d.Bytes(in))
					assert.Equal(t, data, content(t, img)[:1024])

					in = d.In(1025)
					var heads []int
					for _, n := range c.out {
						if n < 16 {
							heads = append(heads, n)
						}
					}
					add(append(cut(d.Out(header(block.RequestIn, 0)), heads...), cut(in, c.in...)...)...)
					q.Kick()
					u = q.Next()
					assert.EqualValues(t, 1025, u.Len)
					assert.Equal(t, append(slices.Clone(data), ok), d.Bytes(in))
				}
			})
		}
		t.Run("an empty descriptor behind the status", func(t *testing.T) {
			in, last := d.In(513), d.In(0)
			q.Add(d.Out(header(block.RequestIn, 0)), in, last)
			q.Kick()
			assert.EqualValues(t, 513, q.Next().Len)
			assert.Equal(t, append(slices.Clone(data[:512]), ok), d.Bytes(in))
			assert.EqualValues(t, 0xaa, d.Bytes(virtiotest.Buffer{GPA: last.GPA, Len: 1})[0])
		})
	})
}

// TestShortHeader: there is a status byte to say it in, so it is the request
// that fails and not the device.
func TestShortHeader(t *testing.T) {
	eachDisk(t, func(t *testing.T, d disk, img *block.Memory) {
		before := content(t, img)
		q := d.Queues[0]
		for _, n := range []int{0, 1, 8, 15} {
			in := d.In(513)
			bufs := []virtiotest.Buffer{in}
			if n > 0 {
				bufs = []virtiotest.Buffer{d.Out(header(block.RequestIn, 0)[:n]), in}
			}
			q.Add(bufs...)
			q.Kick()
			assert.Zero(t, q.Next().Len)
			assert.Equal(t, append(bytes.Repeat([]byte{0xaa}, 512), ioError), d.Bytes(in))
		}
		assert.Equal(t, before, content(t, img))
		_, status := d.read(0, 512)
		assert.EqualValues(t, ok, status)
	})
}

// TestNoStatusByte: a chain that has only readable buffers, or none with a byte
// in it, is beyond what a status can say (rule 6).
func TestNoStatusByte(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		for name, bufs := range map[string]func(d disk) []virtiotest.Buffer{
			"only readable": func(d disk) []virtiotest.Buffer {
				return []virtiotest.Buffer{d.Out(append(header(block.RequestOut, 0), make([]byte, 512)...))}
			},
			"an empty writable one": func(d disk) []virtiotest.Buffer {
				return []virtiotest.Buffer{d.Out(header(block.RequestIn, 0)), d.In(0)}
			},
			"empty": func(d disk) []virtiotest.Buffer { return []virtiotest.Buffer{d.Out(nil)} },
		} {
			t.Run(name, func(t *testing.T) {
				img := block.NewMemory(mib)
				_, err := img.WriteAt(pattern(mib, 0), 0)
				require.NoError(t, err)
				d := attach(t, open, img, block.Options{}, 0)
				before, irqs := content(t, img), d.ConfigIRQ.Count()
				d.Queues[0].Add(bufs(d)...)
				d.Queues[0].Kick()
				d.NeedsReset()
				d.ConfigIRQ.Wait(t, irqs)
				assert.Equal(t, before, content(t, img))
				d.Start(0)
				_, status := d.read(0, 512)
				assert.EqualValues(t, ok, status, "it lives on after the reset")
			})
		}
	})
}

// TestReadOnly: VIRTIO 1.2, sections 5.2.5.2 and 5.2.6.2.
func TestReadOnly(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := readOnly{block.NewMemory(mib)}
		_, err := img.WriteAt(pattern(mib, 0), 0)
		require.NoError(t, err)
		for _, features := range []uint64{0, virtio.FeatureIndirectDesc} { // taken or not
			d := attach(t, open, img, block.Options{}, features)
			assert.NotZero(t, d.Regs.DeviceFeatures()&block.FeatureReadOnly)
			assert.Zero(t, d.Regs.DeviceFeatures()&(block.FeatureFlush|block.FeatureDiscard|block.FeatureWriteZeroes))
			before := content(t, img)
			assert.EqualValues(t, ioError, d.write(0, make([]byte, 512)))
			for _, kind := range []uint32{block.RequestDiscard, block.RequestWriteZeroes} {
				status, _ := d.do(kind, 0, ranges([3]uint64{0, 8, 0}), 0)
				assert.EqualValues(t, ioError, status)
			}
			assert.Equal(t, before, content(t, img))
			got, status := d.read(8, 512)
			assert.EqualValues(t, ok, status)
			assert.Equal(t, before[8*512:9*512], got)
			status, _ = d.do(block.RequestFlush, 0, nil, 0)
			assert.EqualValues(t, unsupported, status, "it was not on offer")
		}
	})
}

type readOnly struct{ *block.Memory }

func (readOnly) ReadOnly() bool { return true }
func (readOnly) Close() error   { return nil }

// TestBufferTwice: elsewhere data was duplicated when a buffer stood in a chain
// twice. Here it is written twice, where it stands.
func TestBufferTwice(t *testing.T) {
	eachDisk(t, func(t *testing.T, d disk, img *block.Memory) {
		q := d.Queues[0]
		one, two, status := d.Out(pattern(512, 1)), d.Out(pattern(512, 2)), d.In(1)
		q.AddIndirect(d.Out(header(block.RequestOut, 4)), one, two, one, one, status)
		q.Kick()
		q.Next()
		require.EqualValues(t, ok, d.Bytes(status)[0])
		want := slices.Concat(pattern(512, 1), pattern(512, 2), pattern(512, 1), pattern(512, 1))
		assert.Equal(t, want, content(t, img)[4*512:][:2048])

		in, other := d.In(512), d.In(512)
		q.AddIndirect(d.Out(header(block.RequestIn, 4)), in, other, in, status)
		q.Kick()
		assert.EqualValues(t, 3*512+1, q.Next().Len)
		assert.Equal(t, pattern(512, 1), d.Bytes(in))
		assert.Equal(t, pattern(512, 2), d.Bytes(other))
	})
}

// TestUsedLength: rule 14: the length is that of an unbroken run of bytes from
// the first writable one on that the device has written.
func TestUsedLength(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := blocktest.NewFaulty(block.NewMemory(mib))
		d := attach(t, open, img, block.Options{}, 0)
		for _, c := range []struct {
			name  string
			fault *blocktest.Fault
			kind  uint32
			out   []byte
			in    int
			want  uint32
		}{
			{"read", nil, block.RequestIn, nil, 4096, 4097},
			{"write", nil, block.RequestOut, make([]byte, 512), 0, 1},
			{"write with room that is not used", nil, block.RequestOut, make([]byte, 512), 512, 0},
			{"flush", nil, block.RequestFlush, nil, 0, 1},
			{"discard", nil, block.RequestDiscard, ranges([3]uint64{0, 8, 0}), 0, 1},
			{"unknown", nil, 99, nil, 0, 1},
			{"failed read", &blocktest.Fault{Ops: blocktest.Read, Err: unix.EIO}, block.RequestIn, nil, 4096, 0},
			{"short read", &blocktest.Fault{Ops: blocktest.Read, ShortOnly: true, Short: 1024}, block.RequestIn, nil, 4096, 1024},
			{"failed write", &blocktest.Fault{Ops: blocktest.Write, Err: unix.EIO}, block.RequestOut, make([]byte, 512), 0, 1},
		} {
			if c.fault != nil {
				img.Add(*c.fault)
			}
			status, r := d.do(c.kind, 0, c.out, c.in)
			assert.Equal(t, c.want, r.len, c.name)
			if c.fault != nil {
				assert.EqualValues(t, ioError, status, c.name)
			}
			img.Clear()
		}
	})
}

// lying is an image that does less than it says.
type lying struct{ *block.Memory }

func (l lying) ReadvAt([][]byte, int64) (int, error)  { return 512, nil }
func (l lying) WritevAt([][]byte, int64) (int, error) { return 512, nil }

// TestImageThatLies: a transfer that is too short without an error is one.
func TestImageThatLies(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		d := attach(t, open, lying{block.NewMemory(mib)}, block.Options{}, 0)
		_, status := d.read(0, 1024)
		assert.EqualValues(t, ioError, status)
		assert.EqualValues(t, ioError, d.write(0, make([]byte, 1024)))
	})
}

// TestUnsupportedByTheHost: a host that has no such call has failed a read,
// write or flush; the guest would take UNSUPP for a flush as leave to go without.
func TestUnsupportedByTheHost(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := blocktest.NewFaulty(block.NewMemory(mib))
		d := attach(t, open, img, block.Options{}, 0)
		for _, err := range []error{unix.EOPNOTSUPP, unix.ENOSYS, errors.ErrUnsupported} {
			img.Add(blocktest.Fault{Ops: blocktest.All, Err: err})
			_, status := d.read(0, 512)
			assert.EqualValues(t, ioError, status)
			assert.EqualValues(t, ioError, d.write(0, make([]byte, 512)))
			status, _ = d.do(block.RequestFlush, 0, nil, 0)
			assert.EqualValues(t, ioError, status)
			status, _ = d.do(block.RequestWriteZeroes, 0, ranges([3]uint64{0, 1, 0}), 0)
			assert.EqualValues(t, unsupported, status, "the guest writes the zeroes")
			status, _ = d.do(block.RequestDiscard, 0, ranges([3]uint64{0, 1, 0}), 0)
			assert.EqualValues(t, ok, status, "a hint")
			img.Clear()
		}
	})
}

// plain is an image that has only what it must.
type plain struct{ io.ReaderAt }

func (plain) Size() int64 { return mib }

// TestPlainImage: what an image can't do is not on offer.
func TestPlainImage(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		data := pattern(mib, 3)
		d := attach(t, open, plain{bytes.NewReader(data)}, block.Options{}, 0)
		assert.NotZero(t, d.Features&block.FeatureReadOnly)
		got, status := d.read(1, 1024)
		assert.EqualValues(t, ok, status)
		assert.Equal(t, data[512:1536], got)
		assert.EqualValues(t, ioError, d.write(0, make([]byte, 512)))
		assert.NoError(t, d.dev.Refresh())
	})
}
