// Package console is the virtio console device: consoles (/dev/hvc0 and on) and
// byte streams between host and guest (/dev/virtio-ports/NAME).
//
// A [Device] has ports. A [Port] has a reader for what the guest receives and a
// writer for what it sends, any Go streams; [Socket] makes those of a Unix socket.
//
// # One console, or ports
//
// A device whose only port is a console without a name has that port's two queues
// and nothing else, as every driver knows it. The guest learns the size of its
// window from the configuration space then. Every other device offers MULTIPORT:
// control messages tell the guest which ports there are, what they are called,
// which of them are consoles and of what size, and both sides when the other side
// opens and closes one. A guest that does not take MULTIPORT has port 0 all the
// same. Some kernels from before 2025 read the two numbers of a resize message in
// the wrong order; they read the configuration space correctly. So a console whose
// window is to follow a terminal is best alone on its device.
//
// # Bytes
//
// What the guest sends goes into a buffer of [OutBuffer] bytes and is given back to
// it at once, so that a guest that waits for each line of its console, as Linux
// does, does not wait for the host's terminal. When the buffer is full the rest
// stays in the guest's own buffers, and its queue stands still until the writer has
// taken something: no byte is dropped, other ports and the control queues go on, and
// the device can be paused and reset at any moment, since nothing of that is in
// flight. A Linux guest whose console stands still spins, with interrupts off, on the
// vCPU that prints.
//
// A reader is read ahead by one buffer at most ([ConsoleInBuffer], [InBuffer]).
// What is in it waits for the guest: until it has a buffer, has opened the port,
// or has booted again. What lies in the guest's memory when the guest closes the
// port or resets is the guest's; Linux throws it away.
//
// # What is left out
//
// Ports that come and go while the guest runs: a device keeps those that it was
// made with.
//
// The device follows VIRTIO 1.2, section 5.3 (Console Device).
package console
