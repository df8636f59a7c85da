package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// inputEnded notes how many bytes the host has had for one of the command's streams.
func (c *command) inputEnded(in wire.Input) {
	if int(in.Stream) >= len(c.sizes) || c.sizes[in.Stream] == nil {
		return
	}
	select {
	case c.sizes[in.Stream] <- in.Bytes:
	default: // it has said so before
	}
}

// whole is called with the number of bytes that came until stream i ended. It waits for
// the host's word that there are no more; the error is that there are, or that the command
// has ended meanwhile.
func (c *command) whole(i int, came int64) error {
	select {
	case size := <-c.sizes[i]:
		if came != size {
			return fmt.Errorf("only %d bytes of it came", came)
		}
		return nil
	case <-c.over:
		return errInterrupted
	}
}

// input copies what the host sends to a command.
type input struct {
	c      *command
	from   *os.File  // the connection
	to     *os.File  // our end of a pipe, or of tty
	tty    *terminal // nil for a pipe
	stream uint8

	lost error // why the command did not get all that it was still to get; after copy
}

// errUnread says that the command does not read its input any more.
var errUnread = errors.New("it is not read")

// copy copies until the end of the input, or until the command does not want it. What
// breaks is the end of a pipe, too, and hangs a terminal up: the command can't be told, so
// the host is.
func (in *input) copy() {
	came, err := in.move()
	if err == nil {
		err = in.c.whole(int(in.stream), came)
	}
	switch err {
	case nil:
		if in.tty != nil {
			in.tty.endInput()
			return
		}
	case errUnread, errInterrupted:
		if in.tty != nil {
			return
		}
	default:
		in.lost = err
	}
	in.to.Close()
}

// move copies to the end of the stream, and returns how much that was.
func (in *input) move() (came int64, err error) {
	buf := make([]byte, smallBuffer)
	for {
		n, err := in.from.Read(buf)
		came += int64(n)
		if n > 0 {
			if _, werr := (patient{in.to}).Write(buf[:n]); werr != nil {
				shut(in.from, unix.SHUT_RD)
				if unwanted(werr) || in.tty != nil && errors.Is(werr, unix.EIO) {
					werr = errUnread
				}
				return came, werr
			}
			if n == len(buf) && n < largeBuffer {
				buf = make([]byte, largeBuffer)
			}
		}
		switch {
		case err == io.EOF:
			return came, nil
		case errors.Is(err, os.ErrClosed): // at the command's end
			return came, errInterrupted
		case err != nil:
			return came, err
		}
	}
}
