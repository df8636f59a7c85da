package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// tempTries is how many names a temporary file is given before it is given up.
const tempTries = 10

// readFile does OpRead: the file Path, as root sees it, goes to the host.
func (c *command) readFile() (*wire.Exited, error) {
	name := within(string(c.Dir), string(c.Path))
	// A pipe without a writer does not hold this up.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.IsDir() {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, unix.EISDIR))
	}
	return c.transfer(func() { _ = f.SetReadDeadline(past) }, func(stream *os.File) error {
		_, err := io.CopyBuffer(patient{stream}, onlyReader{f}, make([]byte, largeBuffer))
		return err
	})
}

// writeFile does OpWrite: the file Path, root's or the user's, is made of what the
// host sends. It takes its name when it is whole, by the host's word, and nobody has
// interrupted it. What is no file that can be made is written in place.
func (c *command) writeFile() (*wire.Exited, error) {
	name := within(string(c.Dir), string(c.Path))
	switch inPlace, err := inPlace(name); {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case inPlace:
		return c.writeInPlace(name)
	}
	tmp, fd, err := openTemp(path.Dir(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	exited, err := c.transfer(func() {}, func(stream *os.File) error {
		n, err := io.CopyBuffer(onlyWriter{f}, onlyReader{stream}, make([]byte, largeBuffer))
		if err == nil {
			err = c.whole(0, n)
		}
		if err == nil && (c.UID != 0 || c.GID != 0) {
			err = unix.Fchown(fd, int(c.UID), int(c.GID))
		}
		if err == nil {
			err = unix.Fchmod(fd, c.Perm&0o7777)
		}
		if err == nil {
			err = f.Close()
		}
		if err == nil {
			err = c.commit()
		}
		if err == nil {
			err = unix.Rename(tmp, name)
		}
		return err
	})
	if err != nil || exited.What != "" {
		_ = unix.Unlink(tmp)
	}
	return exited, err
}

// openTemp makes a file in dir. Its name is random: dir may be the host's, with files of
// other guests in it, also of such that were killed.
func openTemp(dir string) (name string, fd int, err error) {
	for range tempTries {
		var b [8]byte
		if _, err = unix.Getrandom(b[:], 0); err == nil {
			name = fmt.Sprintf("%s/.vole-%x", dir, b)
			fd, err = unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		}
		if err != unix.EEXIST && err != unix.EINTR {
			break
		}
	}
	return name, fd, err
}

// transfer runs do with the command's one connection. A signal to the command closes that
// and calls stop, with the lock held, which ends what else do waits for: a pipe or a device
// that has nothing to say.
func (c *command) transfer(stop func(), do func(stream *os.File) error) (*wire.Exited, error) {
	began := time.Now()
	var stream *os.File
	c.mu.Lock()
	c.abort = func() {
		if !c.aborted {
			c.aborted = true
			close(c.over)
		}
		stop()
		if stream != nil {
			stream.Close()
		}
	}
	if len(c.pending) > 0 {
		c.abort()
	}
	c.mu.Unlock()
	if err := c.connected(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	c.mu.Lock()
	if stream = c.streams[0].file; stream == nil {
		stream = c.streams[1].file
	}
	if c.aborted {
		stream.Close()
	}
	c.mu.Unlock()
	c.a.send(wire.KindStarted, wire.Started{ID: c.ID, PID: unix.Getpid()})
	err := do(stream)
	c.mu.Lock()
	c.ended = true
	if c.aborted {
		err = errInterrupted
	}
	c.mu.Unlock()
	x := &wire.Exited{Wall: int64(time.Since(began))}
	if err != nil {
		x.Code, x.What = 1, fmt.Sprintf("%s: %v", c.Path, cause(err))
	}
	return x, nil
}

// commit is where a signal comes too late to end the transfer; the error is that one has.
func (c *command) commit() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted {
		return errInterrupted
	}
	c.ended = true
	return nil
}

var errInterrupted = errors.New("it was interrupted")

// cause is an error without the names that package os puts before it.
func cause(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// onlyReader and onlyWriter hide what an os.File would do by itself.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
