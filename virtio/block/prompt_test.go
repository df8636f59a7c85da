package block_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/virtio/block"
	"github.com/vole-vmm/vole/virtio/virtiotest"
)

// moody is an image in memory that takes some requests promptly.
type moody struct {
	*block.Memory
	willing        atomic.Bool
	tried, waited  atomic.Int32
	spoilsTheFirst bool // a try moves a part of the bytes before it gives up
}

func (m *moody) TryReadvAt(bufs [][]byte, off int64) bool {
	m.tried.Add(1)
	if !m.willing.Load() {
		if m.spoilsTheFirst {
			bufs[0][0] ^= 0xff
		}
		return false
	}
	_, err := m.Memory.ReadvAt(bufs, off)
	return err == nil
}

func (m *moody) TryWritevAt(bufs [][]byte, off int64) bool {
	m.tried.Add(1)
	if !m.willing.Load() {
		return false
	}
	_, err := m.Memory.WritevAt(bufs, off)
	return err == nil
}

func (m *moody) ReadvAt(bufs [][]byte, off int64) (int, error) {
	m.waited.Add(1)
	return m.Memory.ReadvAt(bufs, off)
}

func (m *moody) WritevAt(bufs [][]byte, off int64) (int, error) {
	m.waited.Add(1)
	return m.Memory.WritevAt(bufs, off)
}

func TestPromptImage(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := &moody{Memory: block.NewMemory(1 << 20), spoilsTheFirst: true}
		d := attach(t, open, img, block.Options{}, 0)
		data := pattern(4096, 7)
		for _, willing := range []bool{false, true, false} {
			img.willing.Store(willing)
			tried, waited := img.tried.Load(), img.waited.Load()
			require.EqualValues(t, ok, d.write(8, data))
			got, status := d.read(8, len(data))
			require.EqualValues(t, ok, status)
			require.True(t, bytes.Equal(data, got), "willing: %v", willing)
			assert.EqualValues(t, 2, img.tried.Load()-tried)
			if willing {
				assert.Equal(t, waited, img.waited.Load())
			} else {
				assert.EqualValues(t, 2, img.waited.Load()-waited)
			}
			data[0]++
		}
		tried := img.tried.Load()
		require.EqualValues(t, ok, d.write(0, pattern(128<<10, 1)))
		assert.Equal(t, tried, img.tried.Load(), "a large transfer is not tried")
		_, status := d.read(1<<20/512, 512)
		assert.EqualValues(t, ioError, status)
		status, _ = d.do(77, 0, nil, 0)
		assert.EqualValues(t, unsupported, status)
		assert.Equal(t, tried, img.tried.Load(), "what is refused is not tried")
	})
}

// A driver that did not take FLUSH has each write made stable, which takes a wait;
// its reads need none (VIRTIO 1.2, section 5.2.6.2).
func TestPromptImageWritesThrough(t *testing.T) {
	virtiotest.Each(t, func(t *testing.T, open virtiotest.Opener) {
		img := &moody{Memory: block.NewMemory(1 << 20)}
		img.willing.Store(true)
		d := attach(t, open, img, block.Options{}, virtio.FeatureIndirectDesc)
		require.EqualValues(t, ok, d.write(0, pattern(512, 1)))
		assert.Zero(t, img.tried.Load())
		assert.EqualValues(t, 1, img.waited.Load())
		_, status := d.read(0, 512)
		assert.EqualValues(t, ok, status)
		assert.EqualValues(t, 1, img.tried.Load())
	})
}

// With a bound on the rate each request pays before the next is taken.
func TestPromptImageWithLimits(t *testing.T) {
	img := &moody{Memory: block.NewMemory(1 << 20)}
	img.willing.Store(true)
	d := attach(t, virtiotest.OpenMMIO, img, block.Options{Limits: virtio.Limits{Ops: virtio.Rate{PerSecond: 1 << 30}}}, 0)
	require.EqualValues(t, ok, d.write(0, pattern(512, 1)))
	assert.Zero(t, img.tried.Load())
}

// A burst of requests is carried out whatever of it can be at once.
func TestPromptBurst(t *testing.T) {
	img := &moody{Memory: block.NewMemory(1 << 20)}
	img.willing.Store(true)
	d := attach(t, virtiotest.OpenMMIO, img, block.Options{}, 0)
	const n = 40
	want := make(map[uint16][]byte)
	reads := make(map[uint16]*request)
	for i := range n {
		data := pattern(512, byte(i))
		_, err := img.WriteAt(data, int64(i)*512)
		require.NoError(t, err)
		r := d.begin(0, block.RequestIn, uint64(i), nil, 512)
		want[r.head], reads[r.head] = data, r
	}
	for range n {
		u := d.Queues[0].Next()
		head := uint16(u.Head)
		require.Contains(t, want, head)
		assert.True(t, bytes.Equal(want[head], reads[head].data()))
		delete(want, head)
	}
}

// TestPromptBurstIsToldAtOnce: a driver without the event index would be interrupted for
// each request.
func TestPromptBurstIsToldAtOnce(t *testing.T) {
	img := &moody{Memory: block.NewMemory(1 << 20)}
	img.willing.Store(true)
	d := attach(t, virtiotest.OpenMMIO, img, block.Options{}, virtio.FeatureIndirectDesc)
	const n = 40
	for i := range n {
		d.prepare(0, block.RequestIn, uint64(i), nil, 512)
	}
	d.Queues[0].Kick()
	for range n {
		d.Queues[0].Next()
	}
	require.NoError(t, d.Function.Pause(patient(t))) // what is done was told then
	assert.Less(t, d.QueueIRQ.Count(), n/2)
}

func TestFileTries(t *testing.T) {
	dirs := map[string]string{"file": t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "vole-test"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs["tmpfs"] = dir
	}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "image")
			require.NoError(t, os.WriteFile(path, pattern(64<<10, 3), 0o600))
			img, err := block.Open(block.OpenOptions{Path: path, Format: block.FormatRaw})
			require.NoError(t, err)
			f := img.(*block.File)
			t.Cleanup(func() { f.Close() })

			a, b := make([]byte, 512), make([]byte, 1024)
			done := f.TryReadvAt([][]byte{a, b}, 4096)
			if name == "tmpfs" {
				require.True(t, done)
			}
			if done {
				assert.Equal(t, pattern(64<<10, 3)[4096:4096+512], a)
				assert.Equal(t, pattern(64<<10, 3)[4608:4608+1024], b)
			}
			copy(a, "written")
			if done = f.TryWritevAt([][]byte{a, b}, 512); name == "tmpfs" {
				require.True(t, done)
			}
			if done {
				now, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.Equal(t, a, now[512:1024])
				assert.Equal(t, b, now[1024:2048])
			}
			assert.False(t, f.TryReadvAt([][]byte{a}, 64<<10), "behind the end")
			assert.False(t, f.TryReadvAt([][]byte{a}, -512))
			assert.False(t, f.TryWritevAt([][]byte{a}, 64<<10-256))

			require.NoError(t, os.Truncate(path, 4096))
			assert.False(t, f.TryWritevAt([][]byte{a}, 8192), "a file that was cut off is not made longer")
			assert.False(t, f.TryReadvAt([][]byte{a}, 8192))
			st, err := os.Stat(path)
			require.NoError(t, err)
			assert.EqualValues(t, 4096, st.Size())

			ro, err := block.Open(block.OpenOptions{Path: path, Format: block.FormatRaw, ReadOnly: true})
			if err == nil {
				assert.False(t, ro.(*block.File).TryWritevAt([][]byte{a}, 0))
				require.NoError(t, ro.(*block.File).Close())
			}
			require.NoError(t, f.Close())
			assert.False(t, f.TryReadvAt([][]byte{a}, 0), "closed")
			assert.False(t, f.TryWritevAt([][]byte{a}, 0))
		})
	}
}

// reluctant is an image whose writes are quick, and that never says so in advance.
type reluctant struct {
	*moody
	buffered bool
	slow     atomic.Bool
	taken    atomic.Int32 // writes that were carried out by who listened to the queue
}

func (r *reluctant) Buffered() bool { return r.buffered }

func (r *reluctant) WritevAt(bufs [][]byte, off int64) (int, error) {
	stack := make([]byte, 4096)
	if bytes.Contains(stack[:runtime.Stack(stack, false)], []byte(".(*worker).take(")) {
		r.taken.Add(1)
	}
	if r.slow.Load() {
		time.Sleep(2 * time.Millisecond) // what is tested is that this is noticed
	}
	return r.moody.WritevAt(bufs, off)
}

// TestWritesByHabit: writes of whole pages that are quick one after the other are soon
// carried out by who takes them, and by workers again when they are not.
func TestWritesByHabit(t *testing.T) {
	for _, buffered := range []bool{true, false} {
		img := &reluctant{moody: &moody{Memory: block.NewMemory(1 << 20)}, buffered: buffered}
		d := attach(t, virtiotest.OpenMMIO, img, block.Options{}, 0)
		page := pattern(4096, 3)
		write := func(n int, sector uint64, data []byte) int {
			img.taken.Store(0)
			for range n {
				require.EqualValues(t, ok, d.write(sector, data))
			}
			return int(img.taken.Load())
		}
		write(200, 0, page)
		if !buffered {
			assert.Zero(t, write(10, 8, page), "an image that is not buffered")
			continue
		}
		assert.Equal(t, 10, write(10, 8, page))
		assert.Equal(t, page, content(t, img)[8*512:8*512+4096])
		assert.Zero(t, write(10, 1, page), "parts of pages")
		assert.Zero(t, write(10, 0, page[:512]), "a part of a page")
		img.slow.Store(true)
		write(8, 0, page)
		assert.Zero(t, write(10, 0, page), "slow writes")
	}
}
