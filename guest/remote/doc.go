// Package remote is the host's side of the agent that runs as PID 1 in a guest: it
// runs commands there in the way in which os/exec runs them here.
//
// A [Guest] serves a listener that the agent connects to, a vsock device's on a
// machine, and is made before the machine starts. A [Cmd] has the fields and methods
// of exec.Cmd. The first command may be put into the agent's configuration
// ([Cmd.Early]), so that it starts without a round trip.
//
// Everything that comes from the guest may be wrong: frames and the number of
// connections are bounded, every wait ends with its context, with the Guest's Close
// or with the agent. An agent that has gone ends all of its commands with [ErrLost].
//
// The package knows nothing of machines. What a guest's panic or hang means for its
// commands is for the package that runs the machine to say ([Guest.Fail]).
package remote
