package agent

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// files are a command's standard files on both sides.
type files struct {
	child [3]int // descriptors for the command
	open  []int  // those of child that are to be closed
	ours  [3]*os.File
	tty   *terminal
}

// files makes what the command's Files say.
func (c *command) files() (_ *files, err error) {
	f := &files{child: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			f.closeChild()
			f.close()
		}
	}()
	slave, null := -1, -1
	for i, kind := range c.Files {
		switch kind {
		case wire.FileTTY:
			if slave < 0 {
				c.mu.Lock()
				size := c.Size
				c.mu.Unlock()
				if f.tty, slave, err = openTerminal(size); err != nil {
					return nil, err
				}
				f.open = append(f.open, slave)
				if err := c.own(slave); err != nil {
					return nil, err
				}
			}
			f.child[i] = slave
		case wire.FileStream:
			if err := f.pipe(i); err != nil {
				return nil, fmt.Errorf("make a pipe: %w", err)
			}
			if err := c.own(f.child[i]); err != nil {
				return nil, err
			}
		case wire.FileOut:
			if i != 2 {
				return nil, fmt.Errorf("standard file %d can't be what standard output is: %w", i, unix.EINVAL)
			}
			f.child[i] = f.child[1]
		case wire.FileNull:
			if null < 0 {
				if null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
					return nil, fmt.Errorf("/dev/null: %w", err)
				}
				f.open = append(f.open, null)
			}
			f.child[i] = null
		default:
			return nil, fmt.Errorf("standard file %d is of the unknown kind %d: %w", i, kind, unix.EINVAL)
		}
	}
	return f, nil
}

// pipe makes file i a pipe, of which our end does not block.
func (f *files) pipe(i int) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	theirs, ours := p[0], p[1]
	if i != 0 {
		theirs, ours = ours, theirs
	}
	f.child[i] = theirs
	f.open = append(f.open, theirs)
	err := unix.SetNonblock(ours, true)
	f.ours[i] = os.NewFile(uintptr(ours), "pipe")
	return err
}

// own gives a command that is not root's what it is connected to: /dev/stderr, for
// one, is opened anew by its name.
func (c *command) own(fd int) error {
	if c.UID == 0 {
		return nil
	}
	if err := unix.Fchown(fd, int(c.UID), -1); err != nil {
		return fmt.Errorf("give user %d its standard files: %w", c.UID, err)
	}
	return nil
}

// closeChild closes the command's side, which it has copies of.
func (f *files) closeChild() {
	for _, fd := range f.open {
		unix.Close(fd)
	}
	f.open = nil
}

// close closes our side.
func (f *files) close() {
	for _, o := range f.ours {
		if o != nil {
			o.Close()
		}
	}
	if f.tty != nil {
		f.tty.Close()
	}
}

// copiers are what moves a command's bytes.
type copiers struct {
	f       *files
	inputs  []*input
	copying sync.WaitGroup // of the inputs
	outputs []*output
}

// copy begins to move the bytes between our side and the connections.
func (f *files) copy(c *command) *copiers {
	cs := &copiers{f: f}
	if in := f.ours[0]; in != nil {
		cs.input(&input{c: c, from: c.streams[0].file, to: in})
	}
	for i := 1; i < len(f.ours); i++ {
		if out := f.ours[i]; out != nil {
			cs.outputs = append(cs.outputs, newOutput(out, c.streams[i].file, uint8(i)))
		}
	}
	if f.tty != nil {
		s := c.streams[wire.Terminal].file
		cs.outputs = append(cs.outputs, newOutput(f.tty.File, s, wire.Terminal))
		cs.input(&input{c: c, from: s, to: f.tty.File, tty: f.tty, stream: wire.Terminal})
	}
	return cs
}

func (cs *copiers) input(in *input) {
	cs.inputs = append(cs.inputs, in)
	cs.copying.Go(in.copy)
}

// end is called when the command has ended. It waits until what the command wrote is
// on its way.
func (cs *copiers) end(a *agent) {
	for _, o := range cs.outputs {
		o.end()
	}
	for _, in := range cs.inputs {
		in.from.Close()
	}
	if in := cs.f.ours[0]; in != nil {
		in.Close()
	}
	for i, o := range cs.f.ours {
		if i > 0 && o != nil && cs.open(o) && a.mayDiscard() {
			cs.f.ours[i] = nil
			go func() {
				discard(o)
				<-a.discards
			}()
		}
	}
	if cs.f.tty != nil {
		cs.f.tty.Close() // hangs up
	}
	cs.copying.Wait()
}

// lost is the first of the outputs that the host did not get all of, nil if there is
// none; after end.
func (cs *copiers) lost() *wire.Lost {
	for _, o := range cs.outputs {
		if o.lost != nil {
			return lost(o.stream, o.lost)
		}
	}
	return nil
}

// lostInput is the first of the inputs that the command did not get all of, nil if there is
// none; after end.
func (cs *copiers) lostInput() *wire.Lost {
	for _, in := range cs.inputs {
		if in.lost != nil {
			return lost(in.stream, in.lost)
		}
	}
	return nil
}

// lost says why a stream is not whole.
func lost(stream uint8, err error) *wire.Lost {
	what := cause(err).Error()
	return &wire.Lost{Stream: stream, What: what[:min(len(what), wire.MaxLost)]}
}

// open says whether somebody else may still write to a pipe.
func (cs *copiers) open(f *os.File) bool {
	for _, o := range cs.outputs {
		if o.from == f {
			return o.open
		}
	}
	return false
}

func (a *agent) mayDiscard() bool {
	select {
	case a.discards <- struct{}{}:
		return true
	default:
		return false
	}
}
