package main

import (
	"errors"
	"strings"
	"syscall"
	"unicode"

	"github.com/vole-vmm/vole/vmm"
	"github.com/vole-vmm/vole/vmm/spec"
)

// Exit codes of `vole run`. The other commands use the first three.
const (
	codeOK          = 0 // the guest powered off, or wrote 0 to the debug exit port
	codeHost        = 1 // an error on the host
	codeUsage       = 2 // bad usage or bad input; nothing was started
	codeReset       = 3
	codePanic       = 4
	codeTripleFault = 5 // also: KVM could not go on
	codeTimeout     = 6
	codeDebugExit   = 7 // a value other than 0
	codeInterrupted = 128 + int(syscall.SIGINT)
)

// usageError is what the user got wrong; nothing was created.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitError ends the process with a code and, where err is nil, without a word.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

// exitCode is the code of the process whose command returned err.
func exitCode(err error) int {
	var exit *exitError
	var usage *usageError
	switch {
	case err == nil:
		return codeOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage), errors.Is(err, vmm.ErrConfig), errors.Is(err, spec.ErrSpec):
		return codeUsage
	}
	return codeHost
}

// guestCode is the code for a guest that ended by itself or by --timeout; Killed is not among these.
func guestCode(e vmm.Exit) int {
	switch e.Reason {
	case vmm.Poweroff:
		return codeOK
	case vmm.DebugExit:
		if e.Code == 0 {
			return codeOK
		}
		return codeDebugExit
	case vmm.Reset:
		return codeReset
	case vmm.Panic:
		return codePanic
	case vmm.TripleFault:
		return codeTripleFault
	case vmm.Timeout:
		return codeTimeout
	}
	return codeHost
}

// oneLine makes an error a single line that can't steer the terminal it is printed on.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		const lineSeparator, paragraphSeparator = '\u2028', '\u2029'
		if unicode.IsControl(r) || r == lineSeparator || r == paragraphSeparator {
			return ' '
		}
		return r
	}, s)
}
