package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/vole-vmm/vole/guest/wire"
)

// ReadFile returns the bytes of a file in the guest.
func (g *Guest) ReadFile(ctx context.Context, name string) ([]byte, error) {
	var b bytes.Buffer
	err := g.CopyOut(ctx, &b, name)
	return b.Bytes(), err
}

// WriteFile makes a file in the guest, or takes the place of the one that is there, as CopyIn.
func (g *Guest) WriteFile(ctx context.Context, name string, data []byte, perm fs.FileMode) error {
	return g.CopyIn(ctx, name, bytes.NewReader(data), perm)
}

// CopyOut copies a file of the guest to w.
func (g *Guest) CopyOut(ctx context.Context, w io.Writer, name string) error {
	c := g.CommandContext(ctx, name)
	c.Stdout = w
	return c.file(wire.OpRead)
}

// CopyIn makes the file of what r gives, or takes the place of the one that is there. It is
// there when all of it is: when ctx ends before, or r fails, what was there stays.
//
// A device, a pipe or a file of the kernel's (/proc, /sys, cgroups) that is there is written as
// it is, and keeps its owner and mode: up to 16 MiB in one write, when all of it has come; of
// what is longer a part may have been written when CopyIn fails.
func (g *Guest) CopyIn(ctx context.Context, name string, r io.Reader, perm fs.FileMode) error {
	c := g.CommandContext(ctx, name)
	c.Stdin = r
	c.wire.Perm = uint32(perm.Perm())
	return c.file(wire.OpWrite)
}

func (c *Cmd) file(op wire.Op) error {
	if err := c.start(op); err != nil {
		return &fs.PathError{Op: string(op), Path: c.Path, Err: err}
	}
	if err := c.Wait(); err != nil {
		var s *StreamError
		if errors.As(err, &s) {
			err = s.Err // which file it is is known
		}
		return &fs.PathError{Op: string(op), Path: c.Path, Err: err}
	}
	return nil
}
