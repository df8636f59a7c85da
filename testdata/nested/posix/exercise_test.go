package posix

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Of TestExercise.
const (
	exerciseOps  = 600
	exerciseSize = 256 << 10 // the longest file
	exerciseSpan = 40 << 10  // the longest piece
)

// exercised is a file and what must be in it.
type exercised struct {
	t    *testing.T
	rnd  *rand.Rand
	path string
	a, b *os.File // the same file, opened twice
	want []byte
	log  []string
}

// TestExercise reads, writes, maps, cuts, punches and renames a file in a random order
// by two descriptors, and compares with memory all the time.
func TestExercise(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("VOLE_POSIX_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("VOLE_POSIX_SEED=%d", seed)
	x := &exercised{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), path: filepath.Join(tested(t), "file")}
	x.open()
	defer func() {
		x.a.Close()
		x.b.Close()
	}()
	ops := []struct {
		name string
		do   func(file *os.File)
	}{
		{"read", x.read}, {"read", x.read}, {"write", x.write}, {"write", x.write}, {"append", x.append},
		{"mapped read", x.mappedRead}, {"mapped write", x.mappedWrite}, {"truncate", x.truncate},
		{"punch", x.punch}, {"allocate", x.allocate}, {"sync", x.sync}, {"reopen", x.reopen}, {"rename", x.rename},
	}
	for i := range exerciseOps {
		op := ops[x.rnd.IntN(len(ops))]
		file := x.a
		if x.rnd.IntN(2) == 0 {
			file = x.b
		}
		x.log = append(x.log, op.name)
		op.do(file)
		x.size(i)
	}
	x.reopen(nil)
	got, err := os.ReadFile(x.path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(x.want, got), "the file in the end")
}

// check fails with what was done last.
func (x *exercised) check(err error, what string) {
	x.t.Helper()
	require.NoError(x.t, err, "%s, after %v", what, x.log[max(0, len(x.log)-10):])
}

func (x *exercised) open() {
	var err error
	x.a, err = os.OpenFile(x.path, os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(x.t, err)
	x.b, err = os.OpenFile(x.path, os.O_RDWR, 0)
	require.NoError(x.t, err)
}

// piece is a part of a file of that length, empty if that is.
func (x *exercised) piece(length int) (at, end int) {
	if length == 0 {
		return 0, 0
	}
	at = x.rnd.IntN(length)
	return at, min(length, at+1+x.rnd.IntN(exerciseSpan))
}

func (x *exercised) noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(x.rnd.Uint32())
	}
	return b
}

// put is what a write of b leaves, beyond the end too.
func (x *exercised) put(b []byte, at int) {
	if more := at + len(b) - len(x.want); more > 0 {
		x.want = append(x.want, make([]byte, more)...)
	}
	copy(x.want[at:], b)
}

func (x *exercised) size(i int) {
	for _, f := range []*os.File{x.a, x.b} {
		st, err := f.Stat()
		x.check(err, "stat")
		require.EqualValues(x.t, len(x.want), st.Size(), "the size after %d: %v", i, x.log[max(0, len(x.log)-10):])
	}
}

func (x *exercised) same(got []byte, at int, how string) {
	x.t.Helper()
	want := x.want[at : at+len(got)]
	if bytes.Equal(want, got) {
		return
	}
	bad := 0
	for want[bad] == got[bad] {
		bad++
	}
	require.Fail(x.t, "other bytes", "%s of %d at %d of %d: byte %d is %#x, not %#x, after %v",
		how, len(got), at, len(x.want), at+bad, got[bad], want[bad], x.log[max(0, len(x.log)-10):])
}

func (x *exercised) read(f *os.File) {
	at, end := x.piece(len(x.want))
	got := make([]byte, end-at)
	_, err := f.ReadAt(got, int64(at))
	if at == end {
		return
	}
	x.check(err, "read")
	x.same(got, at, "a read")
}

func (x *exercised) write(f *os.File) {
	at, end := x.piece(exerciseSize)
	b := x.noise(end - at)
	_, err := f.WriteAt(b, int64(at))
	x.check(err, "write")
	x.put(b, at)
}

func (x *exercised) append(*os.File) {
	b := x.noise(1 + x.rnd.IntN(exerciseSpan))
	if len(x.want)+len(b) > exerciseSize {
		return
	}
	f, err := os.OpenFile(x.path, os.O_WRONLY|os.O_APPEND, 0)
	x.check(err, "open to append")
	_, err = f.Write(b)
	x.check(errors.Join(err, f.Close()), "append")
	x.put(b, len(x.want))
}

// mapped calls do with a piece of the file in a shared mapping.
func (x *exercised) mapped(f *os.File, do func(b []byte, at int)) {
	at, end := x.piece(len(x.want))
	if at == end {
		return
	}
	start := at &^ (os.Getpagesize() - 1)
	m, err := unix.Mmap(int(f.Fd()), int64(start), end-start, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	x.check(err, "mmap")
	do(m[at-start:], at)
	if x.rnd.IntN(2) == 0 {
		x.check(unix.Msync(m, unix.MS_SYNC), "msync")
	}
	x.check(unix.Munmap(m), "munmap")
}

func (x *exercised) mappedRead(f *os.File) {
	x.mapped(f, func(b []byte, at int) { x.same(b, at, "a mapped read") })
}

func (x *exercised) mappedWrite(f *os.File) {
	x.mapped(f, func(b []byte, at int) {
		copy(b, x.noise(len(b)))
		x.put(b, at)
	})
}

func (x *exercised) truncate(f *os.File) {
	size := x.rnd.IntN(exerciseSize)
	if x.rnd.IntN(2) == 0 {
		x.check(f.Truncate(int64(size)), "ftruncate")
	} else {
		x.check(os.Truncate(x.path, int64(size)), "truncate")
	}
	if size <= len(x.want) {
		x.want = x.want[:size:size]
	} else {
		x.put(nil, size)
	}
}

// fallocate is true where the file system can do it.
func (x *exercised) fallocate(f *os.File, mode uint32, at, n int) bool {
	err := unix.Fallocate(int(f.Fd()), mode, int64(at), int64(n))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false
	}
	x.check(err, "fallocate")
	return true
}

func (x *exercised) punch(f *os.File) {
	at, end := x.piece(len(x.want))
	if at < end && x.fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, end-at) {
		clear(x.want[at:end])
	}
}

func (x *exercised) allocate(f *os.File) {
	at, end := x.piece(exerciseSize)
	if x.fallocate(f, 0, at, end-at) && end > len(x.want) {
		x.put(nil, end)
	}
}

func (x *exercised) sync(f *os.File) { x.check(f.Sync(), "fsync") }

func (x *exercised) reopen(*os.File) {
	x.check(errors.Join(x.a.Close(), x.b.Close()), "close")
	x.open()
}

// rename moves the file, which stays open, and removes what was at its new name.
func (x *exercised) rename(*os.File) {
	to := filepath.Join(filepath.Dir(x.path), "name"+strconv.Itoa(x.rnd.IntN(3)))
	x.check(os.Rename(x.path, to), "rename")
	x.path = to
}
