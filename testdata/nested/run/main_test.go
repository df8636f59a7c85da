package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vole-vmm/vole/testdata/nested"
)

func TestEmulated(t *testing.T) {
	lockup := fmt.Errorf("%w: it locked up", nested.ErrHost)
	const again = "nested: the emulated host failed: it locked up; once more in a fresh one, output from its beginning"
	type end struct {
		res nested.Result
		err error
	}
	failed := end{nested.Result{Console: "words"}, lockup}
	tests := []struct {
		name      string
		stdin     bool // is passed through
		cancelled bool
		hosts     []end
		want      int
		said      []string
	}{
		{name: "the command succeeds", hosts: []end{{}}},
		{name: "the command fails", hosts: []end{{res: nested.Result{Code: 5}}}, want: 5},
		{name: "the host fails once", hosts: []end{failed, {res: nested.Result{Code: 3}}}, want: 3, said: []string{again}},
		{name: "the host fails twice", hosts: []end{failed, failed}, want: failure,
			said: []string{again, lockup.Error(), "its console ends so:\nwords"}},
		{name: "stdin is gone", stdin: true, hosts: []end{failed}, want: failure,
			said: []string{lockup.Error(), "its console ends so:\nwords"}},
		{name: "cancelled", cancelled: true, hosts: []end{failed}, want: failure, said: []string{lockup.Error()}},
		{name: "nothing to boot", hosts: []end{{err: errors.New("no QEMU")}}, want: failure, said: []string{"no QEMU"}},
		{name: "out of time", hosts: []end{{nested.Result{Code: 2, Console: "words"}, errors.New("too long")}}, want: failure,
			said: []string{"too long", "its console ends so:\nwords"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.cancelled {
				cancel()
			}
			var said []string
			left := test.hosts
			code := emulated(ctx, !test.stdin, func(s string) { said = append(said, s) }, func() (nested.Result, error) {
				e := left[0]
				left = left[1:]
				return e.res, e.err
			})
			assert.Equal(t, test.want, code)
			assert.Equal(t, test.said, said)
			assert.Empty(t, left, "hosts not booted")
		})
	}
}
