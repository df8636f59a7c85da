package block

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// assertRefused checks that img was refused with one sentence.
func assertRefused(t *testing.T, img Image, err error, words ...string) {
	t.Helper()
	assert.Nil(t, img)
	if !assert.ErrorIs(t, err, ErrImage) {
		return
	}
	assert.NotContains(t, err.Error(), "\n")
	for _, w := range words {
		assert.ErrorContains(t, err, w)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, content string, size int64) {
		require.NoError(t, os.WriteFile(path(name), []byte(content), 0o600))
		require.NoError(t, os.Truncate(path(name), size))
	}
	put("empty", "", 0)
	put("odd", "", 1000)
	put("short", "", 511)
	put("good", "", 8192)
	put("qcow", "QFI\xfb\x00\x00\x00\x03", 8192)
	require.NoError(t, os.Mkdir(path("directory"), 0o700))
	require.NoError(t, unix.Mkfifo(path("fifo"), 0o600))
	require.NoError(t, os.Symlink("nowhere", path("dangling")))
	l, err := net.Listen("unix", path("socket"))
	require.NoError(t, err)
	defer l.Close()

	for _, c := range []struct {
		name string
		o    OpenOptions
		want string
		is   error
	}{
		{"missing", OpenOptions{Path: path("missing")}, "does not exist", fs.ErrNotExist},
		{"no name", OpenOptions{}, "no file is named", nil},
		{"dangling link", OpenOptions{Path: path("dangling")}, "does not exist", fs.ErrNotExist},
		{"through a file", OpenOptions{Path: path("good/more")}, "can't be opened", unix.ENOTDIR},
		{"directory", OpenOptions{Path: path("directory")}, "is a directory", nil},
		{"directory, read-only", OpenOptions{Path: path("directory"), ReadOnly: true}, "is a directory", nil},
		{"FIFO", OpenOptions{Path: path("fifo")}, "is a FIFO", nil},
		{"FIFO, read-only", OpenOptions{Path: path("fifo"), ReadOnly: true}, "is a FIFO", nil},
		{"character device", OpenOptions{Path: "/dev/zero"}, "is a character device", nil},
		{"socket", OpenOptions{Path: path("socket")}, "is a socket", nil},
		{"zero-length", OpenOptions{Path: path("empty")}, "is empty", nil},
		{"not sectors", OpenOptions{Path: path("odd")}, "has 1000 bytes, which is not a multiple of 512", nil},
		{"not sectors, read-only", OpenOptions{Path: path("odd"), ReadOnly: true}, "not a multiple of 512", nil},
		{"less than a sector", OpenOptions{Path: path("short")}, "not a multiple of 512", nil},
		{"unnamed qcow2", OpenOptions{Path: path("qcow")}, "write ,format=qcow2, or ,format=raw", nil},
		{"unnamed qcow2, cow", OpenOptions{Path: path("qcow"), COW: COWMemory}, "write ,format=qcow2, or ,format=raw", nil},
		{"qcow2 for writing", OpenOptions{Path: path("qcow"), Format: "qcow2"}, "can't be written", ErrReadOnly},
		{"raw as qcow2", OpenOptions{Path: path("good"), Format: "qcow2", ReadOnly: true}, "is not a qcow2 image", nil},
		{"unknown format", OpenOptions{Path: path("good"), Format: "vmdk"}, `format "vmdk" is neither raw nor qcow2`, nil},
		{"unknown cache mode", OpenOptions{Path: path("good"), Cache: 7}, "no such modes", nil},
		{"unknown overlay", OpenOptions{Path: path("good"), COW: 7}, "no such modes", nil},
		{"overlay nowhere", OpenOptions{Path: path("good"), COW: COWFile, COWDir: path("missing")}, "can't hold what is written", fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := Open(c.o)
			name := c.o.Path
			if c.o.COWDir != "" {
				name = c.o.COWDir
			}
			assertRefused(t, img, err, c.want, name)
			if c.is != nil {
				assert.ErrorIs(t, err, c.is)
			}
		})
	}
	// Nothing keeps a lock of a refused image.
	img, err := Open(OpenOptions{Path: path("qcow"), Format: "raw"})
	require.NoError(t, err, "a format that is named is believed")
	require.NoError(t, img.(*File).Close())
	img, err = Open(OpenOptions{Path: path("good")})
	require.NoError(t, err)
	require.NoError(t, img.(*File).Close())
}

func TestOpenWithoutPermission(t *testing.T) {
	path := newFile(t, 8192)
	reachable(t, filepath.Dir(path))
	for _, c := range []struct {
		mode     fs.FileMode
		readOnly bool
		want     string
	}{
		{0, true, "may not be read"},
		{0o444, false, ",ro reads it only"},
	} {
		t.Run(c.mode.String(), func(t *testing.T) {
			require.NoError(t, os.Chmod(path, c.mode))
			asNobody(t, func() {
				img, err := Open(OpenOptions{Path: path, ReadOnly: c.readOnly})
				assertRefused(t, img, err, path, c.want)
				assert.ErrorIs(t, err, fs.ErrPermission)
			})
		})
	}
	require.NoError(t, os.Chmod(path, 0o444))
	asNobody(t, func() {
		img, err := Open(OpenOptions{Path: path, COW: COWMemory})
		if assert.NoError(t, err, "an overlay writes nothing to its base") {
			assert.NoError(t, img.(*Overlay).Close())
		}
	})
}

func TestOpenOnReadOnlyFileSystem(t *testing.T) {
	withTmpfs(t, "", func(dir string) {
		path := filepath.Join(dir, "disk")
		assert.NoError(t, os.WriteFile(path, make([]byte, 8192), 0o600))
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); !assert.NoError(t, err) {
			return
		}
		img, err := Open(OpenOptions{Path: path})
		assertRefused(t, img, err, path, "read-only file system: add ,ro")
		img, err = Open(OpenOptions{Path: path, ReadOnly: true})
		if assert.NoError(t, err) {
			assert.NoError(t, img.(*File).Close())
		}
		img, err = Open(OpenOptions{Path: path, COW: COWFile, COWDir: dir})
		assertRefused(t, img, err, dir, "can't hold")
	})
}

func TestNoCacheWantsWholeBlocks(t *testing.T) {
	f := &File{path: "disk", direct: newDirect(4096, 512)}
	assert.Contains(t, f.badSize(8192+512), "not a multiple of 4096")
	assert.Empty(t, f.badSize(8192))
	f.readOnly = true
	assert.Empty(t, f.badSize(8192+512))
}

func TestFullFileSystem(t *testing.T) {
	for _, cow := range []COW{COWNone, COWFile} {
		t.Run(fmt.Sprint(cow), func(t *testing.T) {
			withTmpfs(t, "size=1m", func(dir string) {
				path := filepath.Join(dir, "disk")
				assert.NoError(t, os.WriteFile(path, nil, 0o600))
				assert.NoError(t, os.Truncate(path, 8<<20))
				img, err := Open(OpenOptions{Path: path, COW: cow, COWDir: dir})
				if !assert.NoError(t, err) {
					return
				}
				defer img.(io.Closer).Close()
				p := make([]byte, 4<<20)
				p[0] = 1
				n, err := img.(io.WriterAt).WriteAt(p, 0)
				assert.ErrorIs(t, err, unix.ENOSPC)
				assert.LessOrEqual(t, n, 1<<20)
				// The rest goes on, and a hole makes room.
				_, err = img.ReadAt(p[:8192], 4<<20)
				assert.NoError(t, err)
				if cow == COWNone {
					// Overlays forget the blocks of a write that failed.
					assert.NoError(t, img.(Discarder).Discard(0, 1<<20))
					_, err = img.(io.WriterAt).WriteAt(p[:8192], 6<<20)
					assert.NoError(t, err)
				}
				assert.NoError(t, img.(Flusher).Flush())
			})
		})
	}
}

// TestTmpfs checks the ways of a file system that has holes and no zero ranges.
func TestTmpfs(t *testing.T) {
	withTmpfs(t, "size=64m", func(dir string) {
		path := filepath.Join(dir, "disk")
		assert.NoError(t, os.WriteFile(path, nil, 0o600))
		assert.NoError(t, os.Truncate(path, 3<<20))
		for _, mode := range []CacheMode{Writeback, NoCache} {
			img, err := Open(OpenOptions{Path: path, Cache: mode})
			if mode == NoCache && errors.Is(err, ErrImage) {
				assert.ErrorContains(t, err, "another cache mode")
				continue
			}
			if assert.NoError(t, err) {
				assert.NoError(t, img.(*File).WriteZeroes(0, 3<<20, false))
				p := make([]byte, 512)
				_, err = img.ReadAt(p, 1<<20)
				assert.NoError(t, err)
				assert.NoError(t, img.(*File).Close())
			}
		}
	})
}

// lockCases are two openings of one image.
var lockCases = func() []lockCase {
	write, read := OpenOptions{}, OpenOptions{ReadOnly: true}
	cow := OpenOptions{COW: COWMemory}
	return []lockCase{
		{"two writers", write, write, false},
		{"a reader beside a writer", write, read, false},
		{"a writer beside a reader", read, write, false},
		{"two readers", read, read, true},
		{"an overlay beside a writer", write, cow, false},
		{"a writer beside an overlay", cow, write, false},
		{"two overlays", cow, cow, true},
		{"a reader beside an overlay", cow, read, true},
	}
}()

type lockCase struct {
	name          string
	first, second OpenOptions
	ok            bool
}

// check looks at what became of the second opening, and closes it.
func (c *lockCase) check(t *testing.T, img Image, err error) {
	t.Helper()
	if c.ok {
		require.NoError(t, err)
		require.NoError(t, img.(io.Closer).Close())
		return
	}
	assertRefused(t, img, err, c.first.Path, "is in use")
	assert.ErrorIs(t, err, ErrInUse)
}

func TestLocks(t *testing.T) {
	for _, c := range lockCases {
		t.Run(c.name, func(t *testing.T) {
			path := newFile(t, 8192)
			link := path + ".link"
			require.NoError(t, os.Link(path, link))
			check := func(img Image, err error) { c.check(t, img, err) }
			c.first.Path, c.second.Path = path, path

			first, err := Open(c.first)
			require.NoError(t, err)
			check(Open(c.second))
			c.second.Path = link
			check(Open(c.second)) // whatever its name is
			c.second.Path = path
			require.NoError(t, first.(io.Closer).Close())

			release := openElsewhere(t, c.first)
			check(Open(c.second))
			release()
			again, err := Open(c.second)
			require.NoError(t, err, "a lock ends with its process")
			require.NoError(t, again.(io.Closer).Close())
		})
	}
}

// withoutLocks are answers of file systems that have none.
var withoutLocks = []unix.Errno{unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS, unix.EINVAL}

// TestNoLocks: where the file system has no locks, one process still does not use an
// image twice, by whatever name.
func TestNoLocks(t *testing.T) {
	for _, errno := range withoutLocks {
		none := func(int, *unix.Flock_t) error { return errno }
		for _, c := range lockCases {
			t.Run(fmt.Sprint(errno, "/", c.name), func(t *testing.T) {
				path := newFile(t, 8192)
				link := path + ".link"
				require.NoError(t, os.Link(path, link))
				c.first.Path, c.second.Path = path, link

				first, err := c.first.open(none)
				require.NoError(t, err)
				assert.False(t, first.(Locking).Locked())
				img, err := c.second.open(none)
				c.check(t, img, err)
				img, err = Open(c.second) // were they there again
				c.check(t, img, err)

				require.NoError(t, first.(io.Closer).Close())
				require.NoError(t, first.(io.Closer).Close())
				again, err := c.second.open(none)
				require.NoError(t, err, "it ends with Close")
				require.NoError(t, again.(io.Closer).Close())
				assert.NotContains(t, images.users, idOf(t, path))
			})
		}
	}
}

func idOf(t *testing.T, path string) imageID {
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return imageIDOf(&st)
}

// TestHoldOfARefusedImage: what could not be opened is not held.
func TestHoldOfARefusedImage(t *testing.T) {
	none := func(int, *unix.Flock_t) error { return unix.ENOLCK }
	path := newFile(t, 1000)
	_, err := (&OpenOptions{Path: path}).open(none)
	require.ErrorIs(t, err, ErrImage)
	require.NoError(t, os.Truncate(path, 8192))
	_, err = (&OpenOptions{Path: path}).open(func(int, *unix.Flock_t) error { return unix.EIO })
	require.ErrorIs(t, err, unix.EIO)
	_, err = (&OpenOptions{Path: path}).open(func(int, *unix.Flock_t) error { return unix.EAGAIN })
	require.ErrorIs(t, err, ErrInUse)
	f := open(t, OpenOptions{Path: path})
	assert.True(t, f.Locked())
	// A call in flight keeps the image, as it keeps the lock.
	require.NoError(t, f.acquire())
	require.NoError(t, f.Close())
	_, err = (&OpenOptions{Path: path}).open(none)
	assert.ErrorIs(t, err, ErrInUse)
	f.release()
	f = open(t, OpenOptions{Path: path})
	require.NoError(t, f.Close())
}

// TestNoLocksIsSaid: once, for each disk whose image others may write.
func TestNoLocksIsSaid(t *testing.T) {
	for _, o := range []OpenOptions{{}, {ReadOnly: true}, {COW: COWMemory}, {COW: COWFile}} {
		for _, errno := range []unix.Errno{0, unix.ENOLCK} {
			o.Path, o.COWDir = newFile(t, 8192), t.TempDir()
			img, err := o.open(func(int, *unix.Flock_t) error {
				if errno != 0 {
					return errno
				}
				return nil
			})
			require.NoError(t, err)
			var log strings.Builder
			dev, err := New(img, Options{Name: "vda", Logger: slog.New(slog.NewTextHandler(&log, nil))})
			require.NoError(t, err)
			require.NoError(t, dev.Close())
			if errno == 0 {
				assert.Empty(t, log.String())
				continue
			}
			assert.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
			assert.Contains(t, log.String(), "level=WARN")
			assert.Contains(t, log.String(), "disk=vda")
			assert.Contains(t, log.String(), "can't lock")
		}
	}
}

const elsewhere = "VOLE_TEST_OPEN_ELSEWHERE"

// openElsewhere opens an image in another process until release.
func openElsewhere(t *testing.T, o OpenOptions) (release func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpenElsewhere$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%v,%d,%s", elsewhere, o.ReadOnly, o.COW, o.Path))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "open\n", line)
	return func() {
		// As SIGKILL would: the other process does not close it.
		_ = in.Close()
		_ = cmd.Wait()
	}
}

func TestOpenElsewhere(t *testing.T) {
	what, ok := os.LookupEnv(elsewhere)
	if !ok {
		return // this is the other half of TestLocks, in a process of its own
	}
	f := strings.SplitN(what, ",", 3)
	var o OpenOptions
	_, err := fmt.Sscan(strings.Join(f, " "), &o.ReadOnly, &o.COW, &o.Path)
	require.NoError(t, err)
	_, err = Open(o)
	require.NoError(t, err)
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func TestParseCacheMode(t *testing.T) {
	for _, m := range []CacheMode{Writeback, Writethrough, NoCache} {
		got, err := ParseCacheMode(m.String())
		assert.NoError(t, err)
		assert.Equal(t, m, got)
	}
	_, err := ParseCacheMode("unsafe")
	assert.ErrorIs(t, err, ErrImage)
	assert.ErrorContains(t, err, `"unsafe"`)
}

func TestBlockDevice(t *testing.T) {
	const size = 4 << 20
	for _, sector := range []int{512, 4096} {
		for _, mode := range []CacheMode{Writeback, Writethrough, NoCache} {
			t.Run(fmt.Sprintf("%s/%d", mode, sector), func(t *testing.T) {
				path := newFile(t, size)
				dev := loopDevice(t, path, "--sector-size", fmt.Sprint(sector))
				f := open(t, OpenOptions{Path: dev, Cache: mode})
				assert.EqualValues(t, size, f.Size())
				logical, physical := f.BlockSize()
				assert.Equal(t, sector, logical)
				assert.GreaterOrEqual(t, physical, sector)

				img, err := Open(OpenOptions{Path: dev})
				assertRefused(t, img, err, dev, "is in use")
				img, err = Open(OpenOptions{Path: dev, ReadOnly: true})
				assertRefused(t, img, err, dev, "is in use")
				// A lock is on the node, the device may have others.
				node := filepath.Join(t.TempDir(), "node")
				var st unix.Stat_t
				require.NoError(t, unix.Stat(dev, &st))
				require.NoError(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)))
				img, err = Open(OpenOptions{Path: node})
				assertRefused(t, img, err, node, "is in use")

				_, err = f.WriteAt(make([]byte, size), 0)
				require.NoError(t, err)
				require.NoError(t, f.Flush())
				before := allocated(t, path)
				require.NoError(t, f.Discard(0, size/2))
				require.NoError(t, f.Flush())
				assert.Less(t, allocated(t, path), before, "the hole went through")
				// Over what the loop driver may not zero: the base is known.
				require.NoError(t, f.WriteZeroes(0, size, false))
				checkAgainstModel(t, f, size, 150)

				require.NoError(t, os.Truncate(path, 2*size))
				require.NoError(t, exec.Command("losetup", "--set-capacity", dev).Run())
				grown, err := f.Refresh()
				require.NoError(t, err)
				assert.EqualValues(t, 2*size, grown)
			})
		}
	}
}
