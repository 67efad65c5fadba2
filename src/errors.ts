/**
 * @file The errors a user can meet. Each says in one line what is wrong and what to do (`file or flag: what is wrong
 * (where; found, expected). What to do.`) and carries the exit code the command line ends with. Anything else that is
 * thrown is a bug of ours and ends with 1.
 */

export class PriorworkError extends Error {
  readonly exitCode: number;
  constructor(message: string, exitCode: number, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.exitCode = exitCode;
  }
}

/** The user's file, text or flag is not what it should be. */
export class InputError extends PriorworkError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, 2, options);
  }
}

/** The loss or a gradient stopped being finite; `step` and `operation` are in the message. Who catches it says what is kept. */
export class DivergedError extends PriorworkError {
  readonly step: number;
  readonly operation: string;
  /** Which of several chains, counted from 0, where there are. */
  chain?: number;
  constructor(message: string, step: number, operation: string) {
    super(message, 2);
    this.step = step;
    this.operation = operation;
  }
}

/** No adapter, device lost, out of memory, a shader that does not compile, a dispatch that was refused. */
export class DeviceError extends PriorworkError {
  /** The operation that failed, e.g. "layerNorm.forward", or "" when none is known. */
  readonly operation: string;
  constructor(message: string, operation = "", options?: ErrorOptions) {
    super(message, 3, options);
    this.operation = operation;
  }
}

/** The system could not open, read or write a file. */
export class StorageError extends PriorworkError {
  constructor(message: string, options?: ErrorOptions) {
    super(message, 4, options);
  }
}

/** The user pressed Ctrl-C; what was saved and how to resume is in the message. */
export class InterruptedError extends PriorworkError {
  constructor(message: string) {
    super(message, 130);
  }
}
