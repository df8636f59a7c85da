package vmm

import "fmt"

// Reason says why a machine ended.
type Reason int

const (
	// Running is the Reason of a machine that has not ended.
	Running Reason = iota
	// Poweroff: the guest entered ACPI S5.
	Poweroff
	// Reset: the guest asked for a reset.
	Reset
	// Panic: the guest's kernel panicked.
	Panic
	// TripleFault: a vCPU shut down, or KVM could not go on with it, or all of
	// them have halted with their interrupts off; Err says which.
	TripleFault
	// DebugExit: the guest wrote Code to the debug exit port (0xf4).
	DebugExit
	// Timeout: Config.Timeout has passed.
	Timeout
	// Killed: Kill or Close ended the machine.
	Killed
	// HostError: something on the host failed; Err says what.
	HostError
)

var reasons = []string{
	Running: "running", Poweroff: "poweroff", Reset: "reset", Panic: "panic",
	TripleFault: "triple-fault", DebugExit: "debug-exit", Timeout: "timeout",
	Killed: "killed", HostError: "host-error",
}

func (r Reason) String() string {
	if r < 0 || int(r) >= len(reasons) {
		return fmt.Sprintf("Reason(%d)", int(r))
	}
	return reasons[r]
}

// MarshalText makes a Reason readable in JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Exit is how a machine ended.
type Exit struct {
	Reason Reason
	// Code is what the guest wrote to the debug exit port.
	Code int
	// Err says more: always for HostError, otherwise where there is more to
	// say.
	Err error
}

func (e Exit) String() string {
	s := e.Reason.String()
	if e.Reason == DebugExit {
		s = fmt.Sprintf("%s %d", s, e.Code)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}
