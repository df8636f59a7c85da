// Package wire is what the agent in a guest and the host say to each other.
//
// The agent is PID 1 of the guest. It finds a [Config] in its initramfs, does what
// that says, and connects to the host's vsock port Config.Port: nobody has to guess
// when it is ready. Each connection begins with a [Preface], which the agent sends
// with its [Secret], and belongs to one of two kinds.
//
// The control connection, of which there is one, carries frames both ways, each a
// length, a [Kind] and a body in JSON ([Reader], [Writer]). The agent's first is its
// [Hello]. Frames of an unknown kind are skipped, so that either side may be newer.
//
// A stream connection carries the bytes of one of a command's standard files, or of
// its terminal, and nothing else, so they are binary-safe and separate, and a slow one
// holds up no other. The end of a file is a half-close; that it is the end of what a
// command is to read, and not a connection that was given up, the host says with [Input],
// which has the number of bytes. The agent opens a command's streams before it says
// [Started], and ends those that come from the command before it says [Exited]: what the
// command wrote is all on its way by then, unless that has [Lost]. If it can't open one of
// a command that runs already, it kills that and says so as of a stream that is lost. What
// processes write that a command leaves behind is not waited for.
//
// Neither side trusts the other with more than the length of a frame: [MaxFrame]
// bounds it, and what does not decode is [ErrFrame].
package wire
