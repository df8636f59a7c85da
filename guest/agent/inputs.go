package agent

import (
	"fmt"

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
