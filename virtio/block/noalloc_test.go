package block

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// deviceWithoutAllocations has requests go all the way: published, taken from the
// ring, carried out, and found in the used ring. It counts what the whole process
// allocates meanwhile, on whatever goroutine.
func deviceWithoutAllocations(t *testing.T) {
	const size, unit, batch = 1 << 20, 4096, 16
	images := map[string]func() Image{
		"memory": func() Image { return NewMemory(size) },
		"file": func() Image {
			img, err := Open(OpenOptions{Path: newFile(t, size)})
			require.NoError(t, err)
			return img
		},
		"overlay": func() Image {
			img, err := Open(OpenOptions{Path: newFile(t, size), COW: COWFile, COWDir: t.TempDir()})
			require.NoError(t, err)
			return img
		},
	}
	for name, image := range images {
		for limit, limits := range map[string]virtio.Limits{
			"no limit":   {},
			"with limit": {Bytes: virtio.Rate{PerSecond: 1 << 50}, Ops: virtio.Rate{PerSecond: 1 << 40}},
		} {
			t.Run(name+"/"+limit, func(t *testing.T) {
				dev, err := New(image(), Options{Limits: limits})
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, dev.Close()) })
				d := virtiotest.OpenMMIO(t, dev)
				d.QueueIRQ.C = make(chan struct{}, 1)
				d.Start(0)
				q, bell := d.Queues[0], d.Function.Bell(0)
				for head, kind := range []uint32{RequestIn, RequestOut, RequestFlush} {
					h := make([]byte, headerSize)
					binary.LittleEndian.PutUint32(h, kind)
					binary.LittleEndian.PutUint64(h[8:], 8)
					bufs := []virtiotest.Buffer{d.Out(h)}
					if kind != RequestFlush {
						data := d.In(unit)
						data.Write = kind == RequestIn
						bufs = append(bufs, data)
					}
					status := d.In(1)
					gpa, n := d.Table(virtiotest.Chain(0, append(bufs, status)...)...)
					q.SetDesc(head, virtiotest.Desc{Addr: gpa, Len: n, Flags: virtiotest.DescIndirect})
					end := time.NewTimer(virtiotest.Patience)
					defer end.Stop()
					// Not one in a batch: what a garbage collection takes from the
					// pools is another matter than what each request costs.
					assert.Zero(t, testing.AllocsPerRun(20, func() {
						for range batch {
							q.Publish(uint16(head))
							bell.Ring()
							for _, ok := q.Poll(); !ok; _, ok = q.Poll() {
								select {
								case <-d.QueueIRQ.C:
								case <-end.C:
									t.Fatal("the requests do not end")
								}
							}
						}
					}), "%d requests of type %d", batch, kind)
					assert.EqualValues(t, StatusOK, d.Bytes(status)[0])
				}
			})
		}
	}
}
