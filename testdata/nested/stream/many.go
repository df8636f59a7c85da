package stream

import (
	"fmt"
	"io"
	"sync"
)

// Many opens n connections, has all of them open at the same time, makes one
// exchange on each, and closes them. It returns how many went right, and the first
// error.
func Many(n int, dial func() (io.ReadWriteCloser, error), verb string, bytes int64) (int, error) {
	conns := make([]io.ReadWriteCloser, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range n {
		c, err := dial()
		if err != nil {
			return 0, fmt.Errorf("stream: open connection %d of %d: %w", i+1, n, err)
		}
		conns = append(conns, c)
	}
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() { errs[i] = Client(c, verb, bytes) })
	}
	all.Wait()
	good := 0
	var first error
	for _, err := range errs {
		switch {
		case err == nil:
			good++
		case first == nil:
			first = err
		}
	}
	return good, first
}
