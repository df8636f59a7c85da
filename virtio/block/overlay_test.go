package block

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// constant is a read-only image of one byte.
type constant struct {
	size  int64
	value byte
}

func (c constant) Size() int64 { return c.size }

func (c constant) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = c.value
	}
	return len(p), nil
}

// overlays tests each kind of overlay over a file of content.
func overlays(t *testing.T, content []byte, test func(t *testing.T, o *Overlay)) {
	for _, cow := range []COW{COWMemory, COWFile} {
		for _, mode := range []CacheMode{Writeback, NoCache} {
			t.Run(fmt.Sprintf("%d/%s", cow, mode), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "base")
				require.NoError(t, os.WriteFile(path, content, 0o400))
				dir := t.TempDir()
				img, err := Open(OpenOptions{Path: path, COW: cow, COWDir: dir, Cache: mode})
				require.NoError(t, err)
				o := img.(*Overlay)
				test(t, o)
				entries, err := os.ReadDir(dir)
				require.NoError(t, err)
				assert.Empty(t, entries, "the overlay has a name")
				require.NoError(t, o.Close())
				require.NoError(t, o.Close())
				after, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.True(t, bytes.Equal(content, after), "the base was written")
			})
		}
	}
}

func TestOverlayAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	// The last block is less than a whole one.
	for _, size := range []int{3<<20 + 512, 512, 4096, 5 * 512} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			content := random(size, r)
			overlays(t, content, func(t *testing.T, o *Overlay) {
				checkOver(t, o, bytes.Clone(content), 600)
			})
		})
	}
}

func TestOverlayOfAnyValue(t *testing.T) {
	o := NewOverlay(constant{3 << 20, 5}, NewMemory(3<<20))
	checkOver(t, o, bytes.Repeat([]byte{5}, 3<<20), 400)
	assert.NoError(t, o.Close())
}

// TestOverlayConcurrently has each worker write sectors of its own, so that
// all blocks have several writers, and whole blocks now and then where only
// one has them.
func TestOverlayConcurrently(t *testing.T) {
	const workers, size = 8, 2<<20 + 512*5
	overlays(t, bytes.Repeat([]byte{5}, size), func(t *testing.T, o *Overlay) {
		models := make([][]byte, workers)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(w), 5))
				model := bytes.Repeat([]byte{5}, size)
				models[w] = model
				for k := range 400 {
					sector := r.Int64N(size/512/workers)*workers + int64(w)
					n := int64(512)
					// Pieces of 512 KiB and a block of their own.
					if r.IntN(4) == 0 && w < 4 {
						sector = int64(w)*1024 + 8*r.Int64N(10)
						n = 4096 * (1 + r.Int64N(4))
					} else if sector < 4096 && sector%1024 < 8*16 {
						continue
					}
					off := sector * 512
					p := bytes.Repeat([]byte{byte(k)}, int(n))
					switch r.IntN(5) {
					case 0:
						if !assert.NoError(t, o.WriteZeroes(off, n, true)) {
							return
						}
						clear(p)
					case 1:
						got := make([]byte, n)
						if _, err := o.ReadAt(got, off); !assert.NoError(t, err) || !assert.Equal(t, model[off:off+n], got) {
							return
						}
						continue
					default:
						if _, err := o.WriteAt(p, off); !assert.NoError(t, err) {
							return
						}
					}
					copy(model[off:], p)
				}
			})
		}
		wg.Wait()
		got := make([]byte, size)
		_, err := o.ReadAt(got, 0)
		require.NoError(t, err)
		for s := range size / 512 {
			owner := s % workers
			if s < 4096 && s%1024 < 8*16 {
				owner = s / 1024
			}
			require.True(t, bytes.Equal(models[owner][s*512:][:512], got[s*512:][:512]), "sector %d", s)
		}
	})
}

func TestOverlayDiscardMasks(t *testing.T) {
	overlays(t, bytes.Repeat([]byte{5}, 64<<10), func(t *testing.T, o *Overlay) {
		p := make([]byte, 64<<10)
		require.NoError(t, o.Discard(4096, 8192))
		require.NoError(t, o.Discard(20<<10+512, 4096), "less than a block at each end: nothing happens")
		require.NoError(t, o.WriteZeroes(32<<10+512, 512, false))
		_, err := o.ReadAt(p, 0)
		require.NoError(t, err)
		assert.Equal(t, 8192+512, bytes.Count(p, []byte{0}))
		assert.Equal(t, make([]byte, 8192), p[4096:12<<10])
		assert.Equal(t, make([]byte, 512), p[32<<10+512:33<<10])
	})
}

func TestOverlayDiscardsItsLastBlock(t *testing.T) {
	const size = 64<<10 + 512
	o := NewOverlay(constant{size, 5}, NewMemory(size))
	require.NoError(t, o.Discard(0, size))
	p := make([]byte, size)
	_, err := o.ReadAt(p, 0)
	require.NoError(t, err)
	assert.Equal(t, make([]byte, size), p)
}

// TestOverlayOnAHostWithoutHoles: a discard, which may be of gigabytes, does not
// become a write of zeroes.
func TestOverlayOnAHostWithoutHoles(t *testing.T) {
	up, err := newScratch(t.TempDir(), 1<<20)
	require.NoError(t, err)
	up.noDiscard.Store(true)
	up.noPunch.Store(true)
	up.noZeroRange.Store(true)
	o := NewOverlay(constant{1 << 20, 5}, up)
	defer func() { assert.NoError(t, o.Close()) }()
	assert.ErrorIs(t, o.Discard(0, 1<<20), errors.ErrUnsupported)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(up.fd, &st))
	assert.Zero(t, st.Blocks)
	p := make([]byte, 4096)
	_, err = o.ReadAt(p, 8192)
	require.NoError(t, err)
	assert.Equal(t, bytes.Repeat([]byte{5}, 4096), p, "as it was")
}

func TestOverlayFreesWhatIsDiscarded(t *testing.T) {
	m := NewMemory(1 << 20)
	o := NewOverlay(constant{1 << 20, 5}, m)
	_, err := o.WriteAt(make([]byte, 1<<20), 0)
	require.NoError(t, err)
	assert.EqualValues(t, 1<<20, m.Used())
	require.NoError(t, o.Discard(0, 1<<20))
	assert.Zero(t, m.Used())
}

func TestOverlayLimit(t *testing.T) {
	img, err := Open(OpenOptions{Path: newFile(t, 1<<20), COW: COWMemory, COWLimit: 128 << 10})
	require.NoError(t, err)
	o := img.(*Overlay)
	defer o.Close()
	_, err = o.WriteAt(make([]byte, 128<<10), 0)
	require.NoError(t, err)
	n, err := o.WriteAt(make([]byte, 512), 512<<10)
	assert.ErrorIs(t, err, unix.ENOSPC)
	assert.Zero(t, n)
	_, err = o.WriteAt(make([]byte, 512), 4096)
	assert.NoError(t, err, "what is there can be written again")
}

// failing is an upper image that takes a few bytes of each write only.
type failing struct {
	*Memory
	fail bool
}

func (f *failing) WritevAt(bufs [][]byte, off int64) (int, error) {
	if !f.fail {
		return f.Memory.WritevAt(bufs, off)
	}
	n, _ := f.Memory.WriteAt(bufs[0][:512], off)
	return n, unix.EIO
}

func TestOverlayForgetsFailedWrites(t *testing.T) {
	up := &failing{Memory: NewMemory(64 << 10)}
	o := NewOverlay(constant{64 << 10, 5}, up)
	up.fail = true
	_, err := o.WriteAt(make([]byte, 8192), 4096)
	assert.ErrorIs(t, err, unix.EIO)
	up.fail = false
	_, err = o.WriteAt(bytes.Repeat([]byte{6}, 512), 4096+512)
	require.NoError(t, err)
	p := make([]byte, 64<<10)
	_, err = o.ReadAt(p, 0)
	require.NoError(t, err)
	assert.Equal(t, 64<<10-512, bytes.Count(p, []byte{5}))
	assert.Equal(t, 512, bytes.Count(p, []byte{6}))
}

func TestUnlinkedScratch(t *testing.T) {
	dir := t.TempDir()
	fd, err := openUnlinked(dir)
	require.NoError(t, err)
	defer unix.Close(fd)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
	_, err = unix.Pwrite(fd, []byte{1}, 0)
	assert.NoError(t, err)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	assert.NotZero(t, flags&unix.FD_CLOEXEC)
}

func TestBitmapAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const n = 3*leafBits + 100
	m, model := newBitmap(n), make([]bool, n)
	check := func(i, end int64) {
		run, set := m.run(i, end)
		want := i
		for want < end && model[want] == model[i] {
			want++
		}
		require.Equal(t, model[i], set)
		require.Equal(t, want-i, run, "from %d to %d", i, end)
	}
	for k := range 400 {
		i := r.Int64N(n)
		end := min(n, i+1+r.Int64N(200))
		if k%40 == 0 {
			i, end = 0, leafBits+r.Int64N(leafBits)
		}
		m.set(i, end)
		for j := i; j < end; j++ {
			model[j] = true
		}
		for range 20 {
			i := r.Int64N(n)
			check(i, i+1+r.Int64N(n-i))
		}
		check(0, n)
	}
}

// TestBitmapMemory holds what the package says a 3 TiB base costs.
func TestBitmapMemory(t *testing.T) {
	const blocks = 3 << 40 / overlayBlock
	before := heap()
	m := newBitmap(blocks)
	assert.Less(t, heap()-before, int64(256<<10))
	for i := range int64(blocks / leafBits) {
		m.set(i*leafBits, i*leafBits+1) // the worst: every leaf is mixed
	}
	assert.Less(t, heap()-before, int64(97<<20))
	runtime.KeepAlive(m)
}

func heap() int64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

func TestMemoryAgainstModel(t *testing.T) {
	checkAgainstModel(t, NewMemory(3<<20+512), 3<<20+512, 600)
}

func TestMemory(t *testing.T) {
	m := NewMemory(3<<40 + 100)
	assert.EqualValues(t, 3<<40, m.Size())
	_, err := m.WriteAt([]byte{1}, 3<<40)
	assert.ErrorIs(t, err, ErrRange)
	for i := range int64(5) {
		_, err = m.WriteAt([]byte{1}, i<<38)
		require.NoError(t, err)
	}
	assert.EqualValues(t, 5*chunkSize, m.Used())
	require.NoError(t, m.Discard(0, 512))
	assert.EqualValues(t, 5*chunkSize, m.Used(), "a part frees nothing")
	require.NoError(t, m.Discard(0, 1<<39))
	assert.EqualValues(t, 3*chunkSize, m.Used())

	m.Resize(1 << 39)
	assert.EqualValues(t, 3<<40, m.Size(), "not before Refresh")
	size, err := m.Refresh()
	require.NoError(t, err)
	assert.EqualValues(t, 1<<39, size)
	assert.Zero(t, m.Used())
	m.Resize(1 << 40)
	_, err = m.Refresh()
	require.NoError(t, err)
	p := []byte{9}
	_, err = m.ReadAt(p, 3<<38)
	require.NoError(t, err)
	assert.Zero(t, p[0], "what was cut off came back")
	require.NoError(t, m.Close())
}

func TestMemoryConcurrently(t *testing.T) {
	m := NewMemory(4 * chunkSize)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			p := make([]byte, chunkSize)
			for i := range 200 {
				p[0] = byte(w)
				_, _ = m.WriteAt(p[:512], int64(i%500)*512)
				_, _ = m.ReadAt(p, 0)
				_ = m.Discard(int64(i%4)*chunkSize, chunkSize)
			}
		})
	}
	wg.Wait()
	require.NoError(t, m.Discard(0, m.Size()))
	assert.Zero(t, m.Used())
}

// plain is an image of plain ReadAt and WriteAt.
type plain struct{ m *Memory }

func (p plain) Size() int64                              { return p.m.Size() }
func (p plain) ReadAt(b []byte, off int64) (int, error)  { return p.m.ReadAt(b, off) }
func (p plain) WriteAt(b []byte, off int64) (int, error) { return p.m.WriteAt(b, off) }

// ender is an image that ends early, by the rules of io.ReaderAt.
type ender struct{ plain }

func (e ender) ReadAt(b []byte, off int64) (int, error) {
	if off >= 512 {
		return 0, io.EOF
	}
	return copy(b, make([]byte, min(len(b), int(512-off)))), io.EOF
}

func TestVectorsOverPlainImages(t *testing.T) {
	img := plain{NewMemory(1 << 20)}
	bufs := [][]byte{{1, 2}, nil, {3}}
	n, err := WriteVec(img, bufs, 511)
	require.NoError(t, err)
	assert.Equal(t, 3, n)
	got := [][]byte{{0}, {0, 0}, {}}
	n, err = ReadVec(img, got, 511)
	require.NoError(t, err)
	assert.Equal(t, 3, n)
	assert.Equal(t, [][]byte{{1}, {2, 3}, {}}, got)
	assert.True(t, CanWrite(img))

	n, err = ReadVec(ender{img}, [][]byte{make([]byte, 500), make([]byte, 100)}, 0)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	assert.Equal(t, 512, n)
	_, err = ReadVec(ender{img}, [][]byte{make([]byte, 512)}, 0)
	assert.NoError(t, err, "all there is, and io.EOF with it")

	assert.False(t, CanWrite(constant{512, 0}))
	_, err = WriteVec(constant{512, 0}, bufs, 0)
	assert.ErrorIs(t, err, ErrReadOnly)
}
