/* SPDX-License-Identifier: GPL-3.0-or-later */
/* Copyright: The msgd authors */
/*
 * dgram: many datagrams in one system call (recvmmsg), with the kernel's word on the sender of each.
 *
 * A plain datagram is a whole message without descriptors, from a process whose credentials have been checked before,
 * and that process is its source; or a batch of such messages.  Those in front of the first that is anything else are
 * delivered at once, and plain fragments among them are joined (fragments.c).  That one and all behind it are kept, as recvmsg() would have returned them, and Receiver checks
 * each.  The format is in msgd/wire/dgram.py, the checks in msgd/backends/dgram/receiving.py.
 *
 * Nothing is received while something is kept, and no Python code runs before all of it is delivered or kept: neither
 * `deliver` nor the garbage collector lets any in, so no signal's handler comes in between.
 */
#define _GNU_SOURCE
#include "fragments.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#define DATAGRAMS 32
#define DATAGRAM_MAX 1024
#define LONG_DATAGRAM_MAX 65536 /* between processes of msgd */
#define COOKIE_SIZE 8
#define RIGHTS_MAX 127
#define CONTROL_SIZE (CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(RIGHTS_MAX * sizeof(int)))

static const char whole_cookie[COOKIE_SIZE];
static const char batch_cookie[COOKIE_SIZE] = {-1, -1, -1, -1, -1, -1, -1, -1};

union control {
	struct cmsghdr head;
	char room[CONTROL_SIZE];
};

static char data_buffers[DATAGRAMS][LONG_DATAGRAM_MAX]; /* only what is used becomes memory */
static union control control_buffers[DATAGRAMS];
static struct iovec pieces[DATAGRAMS];
static struct mmsghdr headers[DATAGRAMS]; /* the GIL is held as long as anything is in these */

static void prepare_headers(void)
{
	for (int i = 0; i < DATAGRAMS; i++) {
		pieces[i] = (struct iovec){.iov_base = data_buffers[i], .iov_len = LONG_DATAGRAM_MAX};
		headers[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i],
						     .msg_iovlen = 1,
						     .msg_control = &control_buffers[i],
						     .msg_controllen = sizeof(control_buffers[i])};
	}
}

/* The only control message of the datagram, if it holds credentials; otherwise NULL. */
static const unsigned char *only_credentials(struct msghdr *header)
{
	struct cmsghdr *control = CMSG_FIRSTHDR(header);

	if (!control || control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_CREDENTIALS ||
	    control->cmsg_len != CMSG_LEN(sizeof(struct ucred)) || CMSG_NXTHDR(header, control))
		return NULL;
	return CMSG_DATA(control);
}

/* The pid in these credentials, if they have been checked; 0, perhaps with an exception, if they have not. */
static uint64_t known_pid(PyObject *known_senders, const unsigned char *credentials)
{
	PyObject *key = PyBytes_FromStringAndSize((const char *)credentials, sizeof(struct ucred));
	PyObject *found = key ? PyDict_GetItemWithError(known_senders, key) : NULL;
	struct ucred sender;

	Py_XDECREF(key);
	memcpy(&sender, credentials, sizeof(sender));
	return found && sender.pid > 0 ? (uint64_t)sender.pid : 0;
}

/* Whether so many bytes are the header and data of a message that fits a datagram, with this source. */
static int is_plain(uint64_t pid, const char *bytes, size_t length)
{
	struct route route;

	if (length < HEADER_SIZE || length > DATAGRAM_MAX - COOKIE_SIZE)
		return 0;
	memcpy(&route, bytes, sizeof(route));
	return route.src.pid == pid;
}

static PyObject *message_of(Addresses *addresses, const char *bytes, size_t length)
{
	struct route route;
	uint32_t type;

	memcpy(&route, bytes, sizeof(route));
	memcpy(&type, bytes + sizeof(route), sizeof(type));
	return new_message(addresses, &route, type, bytes + HEADER_SIZE, (Py_ssize_t)(length - HEADER_SIZE));
}

/* Where the next message of a batch begins; its length is stored.  NULL if there is none, or if it does not fit. */
static const char *next_of_batch(const char *position, const char *end, size_t *length)
{
	uint32_t announced;

	if ((size_t)(end - position) < sizeof(announced))
		return NULL;
	memcpy(&announced, position, sizeof(announced));
	position += sizeof(announced);
	*length = announced;
	return announced <= (size_t)(end - position) ? position : NULL;
}

/* The messages of a plain datagram: where they are, and how many; `pid`: its sender, if it may be a plain fragment. */
struct plain {
	const char *position;
	const char *end;
	int is_batch;
	int number;
	uint64_t pid;
};

static int count_batch(uint64_t pid, const char *position, const char *end)
{
	int number = 0;
	size_t length;

	while (position < end) {
		position = next_of_batch(position, end, &length);
		if (!position || !is_plain(pid, position, length))
			return 0;
		position += length;
		number++;
	}
	return number;
}

/* Find the messages of a datagram; number 0, perhaps with an exception, if it is not plain. */
static struct plain plain_messages(PyObject *known_senders, struct mmsghdr *received)
{
	const char *data = received->msg_hdr.msg_iov->iov_base;
	const unsigned char *credentials = only_credentials(&received->msg_hdr);
	size_t length = received->msg_len;
	struct plain found = {.position = data + COOKIE_SIZE, .end = data + length};
	uint64_t pid;

	if (!credentials || (received->msg_hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || length <= COOKIE_SIZE)
		return found;
	pid = known_pid(known_senders, credentials);
	found.is_batch = !memcmp(data, batch_cookie, COOKIE_SIZE);
	if (pid && found.is_batch)
		found.number = count_batch(pid, found.position, found.end);
	else if (pid && !memcmp(data, whole_cookie, COOKIE_SIZE))
		found.number = is_plain(pid, found.position, length - COOKIE_SIZE);
	else
		found.pid = pid;
	return found;
}

/* The control messages as socket.recvmsg() returns them: a list of (level, type, data). */
static PyObject *ancillary_of(struct msghdr *header)
{
	PyObject *list = PyList_New(0);

	for (struct cmsghdr *one = CMSG_FIRSTHDR(header); list && one; one = CMSG_NXTHDR(header, one)) {
		PyObject *item;

		if (one->cmsg_len < CMSG_LEN(0))
			break;
		item = Py_BuildValue("(iiy#)", one->cmsg_level, one->cmsg_type, (const char *)CMSG_DATA(one),
				     (Py_ssize_t)(one->cmsg_len - CMSG_LEN(0)));
		if (!item || PyList_Append(list, item))
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	return list;
}

/* (datagram, ancillary, flags, None), for Receiver to check. */
static PyObject *unchecked(struct mmsghdr *received)
{
	PyObject *ancillary = ancillary_of(&received->msg_hdr);
	Py_ssize_t length = received->msg_len < LONG_DATAGRAM_MAX ? received->msg_len : LONG_DATAGRAM_MAX;

	if (!ancillary)
		return NULL;
	return Py_BuildValue("(y#NiO)", (const char *)received->msg_hdr.msg_iov->iov_base, length, ancillary,
			     received->msg_hdr.msg_flags, Py_None);
}

static void close_rights(struct msghdr *header)
{
	for (struct cmsghdr *one = CMSG_FIRSTHDR(header); one; one = CMSG_NXTHDR(header, one)) {
		if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS || one->cmsg_len < CMSG_LEN(0))
			continue;
		for (size_t at = 0; at + sizeof(int) <= one->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
			int fd;

			memcpy(&fd, CMSG_DATA(one) + at, sizeof(fd));
			close(fd);
		}
	}
}

static int call(PyObject *function, PyObject *argument)
{
	PyObject *done = PyObject_CallOneArg(function, argument);

	Py_XDECREF(done);
	return done ? 0 : -1;
}

/* Deliver the messages.  Returns how many of them are lost, since there is no memory; -1 with an exception. */
static int deliver_all(Addresses *addresses, PyObject *deliver, const struct plain *found)
{
	const char *position = found->position;
	size_t length = (size_t)(found->end - position);
	int lost = 0, failed;

	for (int i = 0; i < found->number; i++, position += length) {
		PyObject *message;

		if (found->is_batch)
			position = next_of_batch(position, found->end, &length);
		message = message_of(addresses, position, length);
		failed = !message || call(deliver, message);
		Py_XDECREF(message);
		if (failed && !PyErr_ExceptionMatches(PyExc_MemoryError))
			return -1;
		if (failed) {
			PyErr_Clear();
			lost++;
		}
	}
	return lost;
}

/* What one call of receive_datagrams() works with. */
struct receiver {
	Addresses *addresses;
	PyObject *known_senders;
	PyObject *deliver;
	PyObject *keep;
	Assembly *assembly;
};

/*
 * Deliver what is in the datagram if it is plain and nothing is kept in front of it; keep it otherwise.  Returns how
 * many messages are lost, since there is no memory; -1 with an exception.
 */
static int take_one(const struct receiver *self, int *kept, struct mmsghdr *received)
{
	struct plain found = {.number = 0};
	PyObject *whole;
	int failed, taken = 0;

	if (!*kept)
		found = plain_messages(self->known_senders, received);
	if (found.number)
		return deliver_all(self->addresses, self->deliver, &found);
	if (found.pid)
		taken = take_fragment(self->assembly, self->addresses, self->deliver, found.pid,
				      received->msg_hdr.msg_iov->iov_base, received->msg_len);
	if (taken > 0)
		return 0;
	whole = taken || PyErr_Occurred() ? NULL : unchecked(received);
	failed = !whole || call(self->keep, whole);
	Py_XDECREF(whole);
	if (!failed) {
		*kept = 1;
		return 0;
	}
	close_rights(&received->msg_hdr);
	if (!PyErr_ExceptionMatches(PyExc_MemoryError))
		return -1;
	PyErr_Clear();
	return 1;
}

static int take_all(const struct receiver *self, int number)
{
	int kept = 0, lost = 0;

	for (int i = 0; i < number; i++) {
		int missing = take_one(self, &kept, &headers[i]);

		if (missing < 0) {
			while (++i < number)
				close_rights(&headers[i].msg_hdr);
			return -1;
		}
		lost += missing;
	}
	return lost;
}

/*
 * receive_datagrams(addresses, fd, known_senders, deliver, received, assembly) -> (whether there may be more, how many were lost)
 *
 * `deliver` is a builtin; the deque `received` takes what is kept.  Does nothing, and there may be more, if it is not
 * empty.  Raises OSError.  A message for which there is no memory is lost, and no other.
 */
PyObject *receive_datagrams(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	int fd, number, lost, was_collecting;
	struct receiver self;
	PyObject *keep;
	Py_ssize_t left;

	(void)module;
	if (count != 6 || !Py_IS_TYPE(args[0], &AddressesType) || !PyDict_Check(args[2]) ||
	    !PyCFunction_Check(args[3]) || !Py_IS_TYPE(args[5], &AssemblyType)) {
		PyErr_SetString(PyExc_TypeError,
				"receive_datagrams(addresses, fd, known_senders, deliver, received, assembly)");
		return NULL;
	}
	fd = (int)PyLong_AsLong(args[1]);
	if (PyErr_Occurred())
		return NULL;
	left = PyObject_Size(args[4]);
	if (left)
		return left < 0 ? NULL : Py_BuildValue("(Oi)", Py_True, 0);
	keep = PyObject_GetAttrString(args[4], "append");
	if (!keep)
		return NULL;
	was_collecting = PyGC_Disable();
	prepare_headers();
	number = recvmmsg(fd, headers, DATAGRAMS, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, NULL);
	if (number < 0 && errno == EAGAIN)
		number = 0;
	if (number < 0)
		PyErr_SetFromErrno(PyExc_OSError);
	self = (struct receiver){(Addresses *)args[0], args[2], args[3], keep, (Assembly *)args[5]};
	lost = number < 0 ? -1 : take_all(&self, number);
	if (was_collecting)
		PyGC_Enable();
	Py_DECREF(keep);
	return lost < 0 ? NULL : Py_BuildValue("(Ni)", PyBool_FromLong(number == DATAGRAMS), lost);
}
