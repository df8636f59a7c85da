package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// outputFile is a file that the run writes, as --console and --report name it.
type outputFile struct {
	flag   string // without the dashes
	path   string // "" is none
	fd     int
	stream *stream // nil until open
	made   bool    // by open: it was not there before
}

// open opens the file and leaves what is in it; if there is none it is made. A FIFO is not waited for:
// it needs a reader already.
func (f *outputFile) open() error {
	const flags = unix.O_WRONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := openAgain(f.path, flags)
	if err == unix.ENOENT {
		fd, err = openAgain(f.path, flags|unix.O_CREAT|unix.O_EXCL)
		f.made = err == nil
	}
	if err == unix.EEXIST {
		// Somebody else has made it meanwhile, or it is a link to what isn't there.
		fd, err = openAgain(f.path, flags|unix.O_CREAT)
	}
	switch {
	case err == unix.ENXIO:
		return f.fail("open", errors.New("nobody reads this FIFO"))
	case err != nil:
		return f.fail("open", err)
	}
	s, err := newStream(fd, os.O_WRONLY)
	if err != nil {
		_ = unix.Close(fd)
		return f.fail("open", err)
	}
	f.fd, f.stream = fd, s
	return nil
}

// openAgain is open(2), which a signal doesn't end.
func openAgain(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0o644)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// truncate throws away what is in a regular file.
func (f *outputFile) truncate() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return f.fail("stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	for {
		if err := unix.Ftruncate(f.fd, 0); err == nil {
			return nil
		} else if err != unix.EINTR {
			return f.fail("truncate", err)
		}
	}
}

// undo closes the file, and removes it if open has made it.
func (f *outputFile) undo() {
	if f.made {
		// Not what has taken its name since.
		var now, own unix.Stat_t
		if unix.Lstat(f.path, &now) == nil && unix.Fstat(f.fd, &own) == nil && sameStorage(&now, &own) {
			_ = os.Remove(f.path)
		}
	}
	f.close()
	f.made = false
}

// close may be called on a file that is not open.
func (f *outputFile) close() {
	if f.stream == nil {
		return
	}
	_ = f.stream.Close()
	_ = unix.Close(f.fd)
	f.stream = nil
}

func (f *outputFile) fail(op string, err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return &os.PathError{Op: op, Path: f.path, Err: err}
}

// sameStorage says whether two names lead to the same bytes on a disk. What is no storage, as /dev/null
// or a FIFO, is never the same.
func sameStorage(a, b *unix.Stat_t) bool {
	if a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT {
		return false
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return a.Dev == b.Dev && a.Ino == b.Ino
	case unix.S_IFBLK:
		return a.Rdev == b.Rdev
	}
	return false
}

// inputFile is a file that the guest is made of.
type inputFile struct{ flag, path string }

// inputFiles are those of the machine. What of them has no name of its own is not among them.
func (s *session) inputFiles() []inputFile {
	list := []inputFile{{"kernel", s.cfg.Kernel}, {"initrd", s.cfg.Initrd}}
	for _, d := range s.machine.Disks {
		list = append(list, inputFile{"disk", d.File})
	}
	return list
}

// openOutputs opens those of the files that are named and not open yet. Before any loses what was in
// it, all are open, and none is one that the guest is made of, or the file of another. Otherwise
// nothing has changed. The error names the flag.
func (s *session) openOutputs(files ...*outputFile) (err error) {
	var opened []*outputFile
	defer func() {
		if err != nil {
			for _, f := range opened {
				f.undo()
			}
		}
	}()
	for _, f := range files {
		if f.path == "" || f.stream != nil {
			continue
		}
		if err := f.open(); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
		opened = append(opened, f)
		if err := f.refuse(s.inputFiles(), opened); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	for _, f := range opened {
		if err := f.truncate(); err != nil {
			return fmt.Errorf("--%s: %w", f.flag, err)
		}
	}
	return nil
}

// refuse fails if the open file is one of those that are in use already.
func (f *outputFile) refuse(inputs []inputFile, outputs []*outputFile) error {
	var own, other unix.Stat_t
	if err := unix.Fstat(f.fd, &own); err != nil {
		return f.fail("stat", err)
	}
	for _, in := range inputs {
		if in.path != "" && unix.Stat(in.path, &other) == nil && sameStorage(&own, &other) {
			return fmt.Errorf("%s is the file of --%s too, and would be written over", f.path, in.flag)
		}
	}
	for _, out := range outputs {
		if out != f && unix.Fstat(out.fd, &other) == nil && sameStorage(&own, &other) {
			return fmt.Errorf("%s is the file of --%s too, and can't be both", f.path, out.flag)
		}
	}
	return nil
}

// boundedWriter gives each Write to a stream a time after which what is not taken is dropped: who
// doesn't read must not hold up the process. One goroutine may use it at a time.
type boundedWriter struct {
	stream *stream
	behind bool // the last Write was not taken at all
}

// A write waits as long as writeBound; after one that was in vain, only behindBound, until it's taken.
const (
	writeBound  = time.Second
	behindBound = 10 * time.Millisecond
)

// Write fails with os.ErrDeadlineExceeded if not all of p is taken in time.
func (w *boundedWriter) Write(p []byte) (int, error) {
	bound := writeBound
	if w.behind {
		bound = behindBound
	}
	if err := w.stream.SetWriteDeadline(time.Now().Add(bound)); err != nil {
		return 0, err
	}
	n, err := w.stream.Write(p)
	w.behind = n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
	return n, err
}
