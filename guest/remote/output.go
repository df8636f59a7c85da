package remote

import (
	"bytes"
	"errors"
	"io"
)

// maxStderr is how much of a command's standard error an ExitError keeps, in bytes.
const maxStderr = 32 << 10

// errSet says that what a method would set is set by the caller.
var errSet = errors.New("that file of the command is set already")

// Output runs the command and returns its standard output. An ExitError has the end of
// its standard error, if Stderr is not set.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, errSet
	}
	var out bytes.Buffer
	var last tail
	c.Stdout = &out
	kept := c.Stderr == nil
	if kept {
		c.Stderr = &last
	}
	err := c.Run()
	var exit *ExitError
	if kept && errors.As(err, &exit) {
		exit.Stderr = last
	}
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to both of its outputs.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, errSet
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// StdinPipe returns a pipe to the command's standard input. Wait closes it.
func (c *Cmd) StdinPipe() (io.WriteCloser, error) {
	if c.Stdin != nil {
		return nil, errSet
	}
	r, w := io.Pipe()
	c.Stdin = r
	c.pipes = append(c.pipes, r)
	return w, nil
}

// StdoutPipe returns a pipe with the command's standard output, which ends with that.
// Wait closes it: what is not read by then is lost.
func (c *Cmd) StdoutPipe() (io.ReadCloser, error) {
	if c.Stdout != nil {
		return nil, errSet
	}
	var r io.ReadCloser
	r, c.Stdout = c.pipe(1)
	return r, nil
}

// StderrPipe is StdoutPipe for the standard error.
func (c *Cmd) StderrPipe() (io.ReadCloser, error) {
	if c.Stderr != nil {
		return nil, errSet
	}
	var r io.ReadCloser
	r, c.Stderr = c.pipe(2)
	return r, nil
}

func (c *Cmd) pipe(i int) (io.ReadCloser, io.Writer) {
	r, w := io.Pipe()
	c.ends[i] = w
	c.pipes = append(c.pipes, r)
	return r, w
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if over := len(*t) - maxStderr; over > 0 {
		*t = append((*t)[:0], (*t)[over:]...)
	}
	return len(p), nil
}
