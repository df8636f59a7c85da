package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newFile makes a file of size zero bytes in a directory on disk.
func newFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	w, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, w.Truncate(size))
	require.NoError(t, w.Close())
	return path
}

func open(t testing.TB, o OpenOptions) *File {
	t.Helper()
	img, err := Open(o)
	require.NoError(t, err)
	f := img.(*File)
	t.Cleanup(func() { assert.NoError(t, f.Close()) })
	return f
}

// eachCache tests a new file in each cache mode that the file system has.
func eachCache(t *testing.T, size int64, test func(t *testing.T, f *File)) {
	for _, mode := range []CacheMode{Writeback, Writethrough, NoCache} {
		t.Run(mode.String(), func(t *testing.T) {
			img, err := Open(OpenOptions{Path: newFile(t, size), Cache: mode})
			if mode == NoCache && errors.Is(err, ErrImage) {
				t.Skip("no O_DIRECT here: ", err)
			}
			require.NoError(t, err)
			defer func() { assert.NoError(t, img.(*File).Close()) }()
			test(t, img.(*File))
		})
	}
}

// split cuts p into n pieces of whole units, the last one with the rest.
func split(p []byte, unit int, r *rand.Rand) [][]byte {
	var bufs [][]byte
	for len(p) > 0 {
		n := min(len(p), unit*(1+r.IntN(4)))
		if r.IntN(8) == 0 {
			bufs = append(bufs, nil)
		}
		bufs = append(bufs, p[:n])
		p = p[n:]
	}
	return bufs
}

func random(n int, r *rand.Rand) []byte {
	p := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

func TestFileAgainstModel(t *testing.T) {
	const size = 3 << 20
	eachCache(t, size, func(t *testing.T, f *File) {
		checkAgainstModel(t, f, size, 400)
	})
}

// TestCoarseBlocksAgainstModel has most requests cover blocks in part.
func TestCoarseBlocksAgainstModel(t *testing.T) {
	img, err := Open(OpenOptions{Path: newFile(t, 3<<20), Cache: NoCache})
	if errors.Is(err, ErrImage) {
		t.Skip("no O_DIRECT here: ", err)
	}
	require.NoError(t, err)
	f := img.(*File)
	defer f.Close()
	f.direct = newDirect(4096, 4096)
	checkAgainstModel(t, f, 3<<20, 400)
}

// checkAgainstModel does random operations on img, which reads as zeroes, and
// on a slice.
func checkAgainstModel(t *testing.T, img Image, size int64, rounds int) {
	t.Helper()
	checkOver(t, img, make([]byte, size), rounds)
}

// checkOver does random operations on img and on model, which are the same.
func checkOver(t *testing.T, img Image, model []byte, rounds int) {
	t.Helper()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	size := int64(len(model))
	for range rounds {
		off := r.Int64N(size/512) * 512
		n := min(size-off, 512*(1+r.Int64N(64)))
		if r.IntN(20) == 0 {
			n = min(size-off, 512*(1+r.Int64N(3000)))
		}
		what := ""
		switch op := r.IntN(10); {
		case op < 4:
			what = "write"
			p := random(int(n)+3, r)[r.IntN(4):][:n] // any address
			w, err := WriteVec(img, split(p, 512, r), off)
			require.NoError(t, err, "seed %d", seed)
			require.EqualValues(t, n, w)
			copy(model[off:], p)
		case op < 8:
			what = "read"
			p := make([]byte, n+3)[r.IntN(4):][:n]
			got, err := ReadVec(img, split(p, 512, r), off)
			require.NoError(t, err, "seed %d", seed)
			require.EqualValues(t, n, got)
			require.True(t, bytes.Equal(model[off:off+n], p), "read of %d at %d, seed %d", n, off, seed)
		case op < 9:
			what = "zeroes"
			require.NoError(t, img.(ZeroWriter).WriteZeroes(off, n, r.IntN(2) == 0), "seed %d", seed)
			clear(model[off : off+n])
		default:
			what = "discard"
			err := img.(Discarder).Discard(off, n)
			if errors.Is(err, errors.ErrUnsupported) {
				continue
			}
			require.NoError(t, err, "seed %d", seed)
			// Zeroes or what was there: go on with what it is.
			p := make([]byte, n)
			_, err = img.ReadAt(p, off)
			require.NoError(t, err)
			for i, b := range p {
				if b != 0 && b != model[off+int64(i)] {
					t.Fatalf("discard of %d at %d made %d of byte %d, seed %d", n, off, b, i, seed)
				}
			}
			copy(model[off:], p)
		}
		if r.IntN(50) == 0 {
			require.NoError(t, img.(Flusher).Flush(), what)
		}
	}
	all := make([]byte, size)
	_, err := img.ReadAt(all, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(model, all), "seed %d", seed)
}

func TestFileRefusesOutside(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 8192)})
	p := make([]byte, 1024)
	for _, c := range []struct {
		name string
		off  int64
		n    int
		ok   bool
	}{
		{"all of the end", 7168, 1024, true},
		{"nothing at the end", 8192, 0, true},
		{"across the end", 7680, 1024, false},
		{"behind the end", 8192, 512, false},
		{"negative", -512, 512, false},
		{"wraps", 1<<63 - 512, 1024, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, r := f.ReadAt(p[:c.n], c.off)
			_, w := f.WriteAt(p[:c.n], c.off)
			d := f.Discard(c.off, int64(c.n))
			z := f.WriteZeroes(c.off, int64(c.n), true)
			for _, err := range []error{r, w, d, z} {
				if c.ok {
					assert.NoError(t, err)
				} else {
					assert.ErrorIs(t, err, ErrRange)
					assert.ErrorContains(t, err, "disk.img")
				}
			}
		})
	}
	st, err := os.Stat(f.Path())
	require.NoError(t, err)
	assert.EqualValues(t, 8192, st.Size(), "the file grew")
}

func TestFileManySegments(t *testing.T) {
	eachCache(t, 4<<20, func(t *testing.T, f *File) {
		r := rand.New(rand.NewPCG(1, 2))
		p := random(3000*512, r)
		var bufs [][]byte
		for i := 0; i < len(p); i += 512 {
			bufs = append(bufs, p[i:i+512])
		}
		n, err := f.WritevAt(bufs, 512)
		require.NoError(t, err)
		assert.Equal(t, len(p), n)
		got := make([]byte, len(p))
		n, err = f.ReadAt(got, 512)
		require.NoError(t, err)
		assert.Equal(t, len(p), n)
		assert.True(t, bytes.Equal(p, got))
	})
}

func TestFileTruncatedUnderneath(t *testing.T) {
	eachCache(t, 64<<10, func(t *testing.T, f *File) {
		p := bytes.Repeat([]byte{7}, 64<<10)
		_, err := f.WriteAt(p, 0)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(f.Path(), 16<<10))
		n, err := f.ReadAt(p[:8192], 12<<10)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.LessOrEqual(t, n, 4096)
		_, err = f.ReadAt(p[:512], 32<<10)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		_, err = f.WriteAt(p[:4096], 32<<10)
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "a write would put zeroes where data was lost")
		assert.ErrorIs(t, f.Flush(), io.ErrUnexpectedEOF)
		_, err = f.WriteAt(p[:4096], 0)
		assert.NoError(t, err, "what is left is usable")
		size, err := f.Refresh()
		require.NoError(t, err)
		assert.EqualValues(t, 16<<10, size)
		assert.NoError(t, f.Flush())
	})
}

// TestWhatWasCutStaysLost: a file that was cut off and made as long as before has
// a hole where data was. No look at its size brings that back; only a size that
// ends before the hole, and that whoever uses the image was told, leaves it behind.
func TestWhatWasCutStaysLost(t *testing.T) {
	const kib = 1 << 10
	for _, c := range []struct {
		name  string
		steps []int64 // sizes in KiB, each with a Flush, which notices
		looks []int64 // sizes in KiB, each with a Refresh
		lost  bool
	}{
		{"as long as before", []int64{32}, []int64{64}, true},
		{"looked at twice", []int64{32}, []int64{64, 64}, true},
		{"longer than before", []int64{32}, []int64{128}, true},
		{"in part", []int64{32}, []int64{48}, true},
		{"in part, then as before", []int64{32}, []int64{48, 64}, true},
		{"cut again", []int64{32, 64, 16}, []int64{32}, true},
		{"grown, then cut by what has grown", []int64{32}, []int64{128, 64}, true},
		{"told the smaller size", []int64{32}, []int64{32}, false},
		{"told the smaller size late", []int64{32}, []int64{64, 32}, false},
		{"told one that is smaller still", []int64{32}, []int64{16, 64}, false},
		{"told, then grown", []int64{32}, []int64{32, 128}, false},
		{"only grown", nil, []int64{128, 256}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachCache(t, 64*kib, func(t *testing.T, f *File) {
				_, err := f.WriteAt(bytes.Repeat([]byte{7}, 64*kib), 0)
				require.NoError(t, err)
				for _, size := range c.steps {
					require.NoError(t, os.Truncate(f.Path(), size*kib))
					assert.ErrorIs(t, f.Flush(), io.ErrUnexpectedEOF)
				}
				for _, size := range c.looks {
					require.NoError(t, os.Truncate(f.Path(), size*kib))
					told, err := f.Refresh()
					require.NoError(t, err)
					assert.Equal(t, size*kib, told)
				}
				p := make([]byte, 4*kib)
				last := f.Size() - 4*kib
				errs := map[string]error{"flush": f.Flush()}
				_, errs["read"] = f.ReadAt(p, last)
				_, errs["write"] = f.WriteAt(p, last)
				errs["zeroing"] = f.WriteZeroes(last, 4*kib, false)
				assert.False(t, c.lost && f.TryReadvAt([][]byte{p}, last), "a prompt read finds a hole")
				for what, err := range errs {
					if c.lost {
						assert.ErrorIs(t, err, io.ErrUnexpectedEOF, what)
					} else {
						assert.NoError(t, err, what)
					}
				}
				_, err = f.WriteAt(p, 0)
				assert.NoError(t, err, "what is left is usable")
			})
		})
	}
}

// TestCutSeenByRefresh: a look that finds a size that can't be, or only the look
// itself, notices the loss as well.
func TestCutSeenByRefresh(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 64<<10)})
	require.NoError(t, os.Truncate(f.Path(), 1000))
	_, err := f.Refresh()
	require.ErrorIs(t, err, ErrImage)
	require.NoError(t, os.Truncate(f.Path(), 64<<10))
	_, err = f.Refresh()
	require.NoError(t, err)
	assert.ErrorIs(t, f.Flush(), io.ErrUnexpectedEOF)
}

// TestLateLookAtTheEnd: what was seen before the size was told to be smaller says
// nothing of the file that has grown since.
func TestLateLookAtTheEnd(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 64<<10)})
	before := f.shrunk.Load()
	for _, size := range []int64{32 << 10, 128 << 10} {
		require.NoError(t, os.Truncate(f.Path(), size))
		_, err := f.Refresh()
		require.NoError(t, err)
	}
	f.cutOff(before, 32<<10)
	assert.NoError(t, f.Flush())
	f.cutOff(f.shrunk.Load(), 64<<10)
	assert.ErrorIs(t, f.Flush(), io.ErrUnexpectedEOF)
}

func TestFlushSeesTruncation(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 64<<10)})
	require.NoError(t, os.Truncate(f.Path(), 4096))
	assert.ErrorIs(t, f.Flush(), io.ErrUnexpectedEOF)
}

func TestFileRemovedUnderneath(t *testing.T) {
	eachCache(t, 1<<20, func(t *testing.T, f *File) {
		require.NoError(t, os.Remove(f.Path()))
		checkAgainstModel(t, f, 1<<20, 50)
	})
}

func TestFileRefresh(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 8192)})
	for _, c := range []struct {
		name    string
		to      int64
		want    int64
		refused bool
	}{
		{"grown", 1 << 20, 1 << 20, false},
		{"shrunk", 4096, 4096, false},
		{"not sectors", 5000, 4096, true},
		{"nothing left", 0, 4096, true},
		{"grown again", 3 << 40, 3 << 40, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, os.Truncate(f.Path(), c.to))
			size, err := f.Refresh()
			if c.refused {
				assert.ErrorIs(t, err, ErrImage)
			} else {
				assert.NoError(t, err)
				assert.Equal(t, c.want, size)
			}
			assert.Equal(t, c.want, f.Size())
		})
	}
}

func TestThreeTebibytes(t *testing.T) {
	const size = 3 << 40
	for _, cow := range []COW{COWNone, COWMemory, COWFile} {
		t.Run(fmt.Sprint(cow), func(t *testing.T) {
			img, err := Open(OpenOptions{Path: newFile(t, size), COW: cow, COWDir: t.TempDir()})
			require.NoError(t, err)
			defer img.(io.Closer).Close()
			p := bytes.Repeat([]byte{3}, 4096)
			for _, off := range []int64{0, 1 << 40, 2<<40 + 512, size - 4096} {
				_, err := img.(io.WriterAt).WriteAt(p, off)
				require.NoError(t, err)
				got := make([]byte, 4096)
				_, err = img.ReadAt(got, off)
				require.NoError(t, err)
				assert.Equal(t, p, got)
			}
			// What mkfs does.
			require.NoError(t, img.(Discarder).Discard(0, size))
			got := make([]byte, 4096)
			_, err = img.ReadAt(got, 1<<40)
			require.NoError(t, err)
			assert.Equal(t, make([]byte, 4096), got)
			if o, ok := img.(*Overlay); ok {
				for i := range o.written.leaves {
					l := o.written.leaves[i].Load()
					assert.True(t, l == nil || l == o.written.full, "a leaf of its own for what is the same")
				}
			}
		})
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestHolesAreFreed(t *testing.T) {
	for _, c := range []struct {
		name string
		call func(f *File) error
		free bool
	}{
		{"discard", func(f *File) error { return f.Discard(1<<20, 2<<20) }, true},
		{"zeroes that unmap", func(f *File) error { return f.WriteZeroes(1<<20, 2<<20, true) }, true},
		{"zeroes that stay", func(f *File) error { return f.WriteZeroes(1<<20, 2<<20, false) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachCache(t, 4<<20, func(t *testing.T, f *File) {
				_, err := f.WriteAt(bytes.Repeat([]byte{9}, 4<<20), 0)
				require.NoError(t, err)
				require.NoError(t, f.Flush())
				before := allocated(t, f.Path())
				require.GreaterOrEqual(t, before, int64(4<<20))
				err = c.call(f)
				if errors.Is(err, errors.ErrUnsupported) {
					t.Skip("no holes on this file system")
				}
				require.NoError(t, err)
				require.NoError(t, f.Flush())
				freed := before - allocated(t, f.Path())
				if c.free {
					assert.GreaterOrEqual(t, freed, int64(2<<20))
				} else {
					assert.Zero(t, freed)
				}
				p := make([]byte, 4<<20)
				_, err = f.ReadAt(p, 0)
				require.NoError(t, err)
				assert.Equal(t, 2<<20, bytes.Count(p, []byte{9}))
				assert.Equal(t, 2<<20, bytes.Count(p[1<<20:3<<20], []byte{0}))
			})
		})
	}
}

// TestZeroesWithoutFallocate takes the way of a file system that has neither
// holes nor zero ranges.
func TestZeroesWithoutFallocate(t *testing.T) {
	eachCache(t, 3<<20, func(t *testing.T, f *File) {
		f.noDiscard.Store(true)
		f.noPunch.Store(true)
		f.noZeroRange.Store(true)
		assert.ErrorIs(t, f.Discard(0, 512), errors.ErrUnsupported)
		checkAgainstModel(t, f, 3<<20, 100)
	})
}

func TestFailedFlushStaysFailed(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 8192)})
	require.NoError(t, f.Flush())
	// fdatasync of a pipe fails with EINVAL.
	var pipe [2]int
	require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC))
	defer unix.Close(pipe[1])
	good := f.fd
	f.fd = pipe[0]
	first := f.Flush()
	assert.ErrorIs(t, first, unix.EINVAL)
	unix.Close(pipe[0])
	f.fd = good
	assert.Equal(t, first, f.Flush(), "what was lost stays lost")
}

// TestOpenFlags: the cache mode is what the host was asked for, and nothing that
// was of use for opening only is left.
func TestOpenFlags(t *testing.T) {
	const all = unix.O_DSYNC | unix.O_DIRECT | unix.O_NONBLOCK | unix.O_ACCMODE
	for _, readOnly := range []bool{false, true} {
		for mode, want := range map[CacheMode]int{Writeback: 0, Writethrough: unix.O_DSYNC, NoCache: unix.O_DIRECT} {
			t.Run(fmt.Sprintf("%s/read-only %v", mode, readOnly), func(t *testing.T) {
				img, err := Open(OpenOptions{Path: newFile(t, 8192), Cache: mode, ReadOnly: readOnly})
				if mode == NoCache && errors.Is(err, ErrImage) {
					t.Skip("no O_DIRECT here: ", err)
				}
				require.NoError(t, err)
				f := img.(*File)
				defer func() { assert.NoError(t, f.Close()) }()
				if !readOnly {
					want |= unix.O_RDWR
				}
				flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
				require.NoError(t, err)
				assert.Equal(t, want, flags&all, "%#x", flags)
			})
		}
	}
}

// TestWritethroughOfChanges: O_DSYNC is for writes only; what else changes the file
// is made stable as well, in this mode and no other. Whether it was flushed shows by a
// flush that can't succeed any more.
func TestWritethroughOfChanges(t *testing.T) {
	eachCache(t, 64<<10, func(t *testing.T, f *File) {
		lost := errors.New("lost")
		f.syncErr = lost
		for what, err := range map[string]error{
			"discard":           f.Discard(0, 4096),
			"zeroing":           f.WriteZeroes(4096, 4096, false),
			"zeroing and unmap": f.WriteZeroes(8192, 4096, true),
		} {
			switch {
			case errors.Is(err, errors.ErrUnsupported): // no holes on this file system
			case f.cache == Writethrough:
				assert.ErrorIs(t, err, lost, what)
			default:
				assert.NoError(t, err, what)
			}
		}
	})
}

func TestReadOnlyFile(t *testing.T) {
	f := open(t, OpenOptions{Path: newFile(t, 8192), ReadOnly: true})
	assert.False(t, CanWrite(f))
	p := make([]byte, 512)
	_, err := f.ReadAt(p, 0)
	assert.NoError(t, err)
	_, err = f.WriteAt(p, 0)
	assert.ErrorIs(t, err, ErrReadOnly)
	assert.ErrorIs(t, f.Discard(0, 512), ErrReadOnly)
	assert.ErrorIs(t, f.WriteZeroes(0, 512, true), ErrReadOnly)
	assert.NoError(t, f.Flush())
}

func TestClosedFile(t *testing.T) {
	img, err := Open(OpenOptions{Path: newFile(t, 8192)})
	require.NoError(t, err)
	f := img.(*File)
	// A call in flight keeps the descriptor.
	require.NoError(t, f.acquire())
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	_, err = unix.FcntlInt(uintptr(f.fd), unix.F_GETFD, 0)
	assert.NoError(t, err)
	p := make([]byte, 512)
	_, err = f.ReadAt(p, 0)
	assert.ErrorIs(t, err, fs.ErrClosed)
	_, err = f.WriteAt(p, 0)
	assert.ErrorIs(t, err, fs.ErrClosed)
	assert.ErrorIs(t, f.Flush(), fs.ErrClosed)
	assert.ErrorIs(t, f.Discard(0, 512), fs.ErrClosed)
	_, err = f.Refresh()
	assert.ErrorIs(t, err, fs.ErrClosed)
	f.release()
	_, err = unix.FcntlInt(uintptr(f.fd), unix.F_GETFD, 0)
	assert.ErrorIs(t, err, unix.EBADF)
}

// TestPartialBlocksDirect has neighbours write sectors of one block at once,
// beside writes of whole blocks, which with O_DIRECT are read and written back.
func TestPartialBlocksDirect(t *testing.T) {
	img, err := Open(OpenOptions{Path: newFile(t, 64<<10), Cache: NoCache})
	if errors.Is(err, ErrImage) {
		t.Skip("no O_DIRECT here: ", err)
	}
	require.NoError(t, err)
	f := img.(*File)
	defer f.Close()
	f.direct = newDirect(4096, 4096) // as on a disk with such blocks
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for k := range 60 {
				p := bytes.Repeat([]byte{byte(k), byte(i)}, 256)
				if _, err := f.WriteAt(p, int64(i)*512); !assert.NoError(t, err) {
					return
				}
				got := make([]byte, 512)
				if _, err := f.ReadAt(got, int64(i)*512); !assert.NoError(t, err) || !assert.Equal(t, p, got) {
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector drops what a sync.Pool keeps")
	}
	t.Run("device", deviceWithoutAllocations)
	eachCache(t, 1<<20, func(t *testing.T, f *File) {
		aligned := alignedBytes(130*512, 4096)
		var bufs [][]byte
		for i := range 130 {
			bufs = append(bufs, aligned[i*512:][:512])
		}
		for _, o := range []struct {
			name string
			img  interface {
				Vectored
				io.ReaderAt
				io.WriterAt
			}
		}{{"file", f}, {"memory", NewMemory(1 << 20)}, {"overlay", NewOverlay(f, NewMemory(1<<20))}} {
			t.Run(o.name, func(t *testing.T) {
				if _, err := o.img.WriteAt(aligned[:4096], 8192); err != nil {
					t.Fatal(err)
				}
				for what, call := range map[string]func(){
					"readv":  func() { _, _ = o.img.ReadvAt(bufs, 512) },
					"writev": func() { _, _ = o.img.WritevAt(bufs, 512) },
					"read":   func() { _, _ = o.img.ReadAt(aligned[:4096], 512) },
					"write":  func() { _, _ = o.img.WriteAt(aligned[:4096], 512) },
				} {
					assert.Less(t, testing.AllocsPerRun(100, call), 1.0, what)
				}
			})
		}
	})
}

func BenchmarkFile(b *testing.B) {
	f := open(b, OpenOptions{Path: newFile(b, 1<<20)})
	for _, n := range []int{1, 8, 130} {
		p := alignedBytes(n*4096, 4096)
		var bufs [][]byte
		for i := range n {
			bufs = append(bufs, p[i*4096:][:4096])
		}
		b.Run(fmt.Sprintf("ReadvAt/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, err := f.ReadvAt(bufs, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("WritevAt/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, err := f.WritevAt(bufs, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
